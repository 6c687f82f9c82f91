/* A libnvidia-ml.so.1 whose GPUs are the lines of the file FAKE_NVML, read at every call:
 *
 *     UUID MEMORY_MIB USED_MIB UTILISATION TEMPERATURE POWER_W STATE NAME...
 *
 * STATE is `ok` or `lost`. The library itself fails to start when there is no such file.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, LOST = 15, MOST = 16 };

typedef struct {
    char uuid[80], state[16], name[80];
    unsigned memory, used, utilisation, temperature, power;
} Gpu;

static int load(Gpu *gpus) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    int count = 0;
    if (!file) return -1;
    while (count < MOST) {
        Gpu *g = &gpus[count];
        int got = fscanf(file, "%79s %u %u %u %u %u %15s %79[^\n]", g->uuid, &g->memory, &g->used,
                         &g->utilisation, &g->temperature, &g->power, g->state, g->name);
        if (got != 8) break;
        count++;
    }
    fclose(file);
    return count;
}

static int find(void *handle, Gpu *gpu) {
    Gpu gpus[MOST];
    long index = (long)handle - 1;
    int count = load(gpus);
    if (index < 0 || index >= count) return INVALID;
    *gpu = gpus[index];
    return strcmp(gpu->state, "lost") == 0 ? LOST : OK;
}

int nvmlInitWithFlags(unsigned flags) {
    Gpu gpus[MOST];
    (void)flags;
    return load(gpus) < 0 ? DRIVER_NOT_LOADED : OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code) {
    if (code == LOST) return "GPU is lost";
    if (code == DRIVER_NOT_LOADED) return "Driver Not Loaded";
    return "Unknown Error";
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    Gpu gpus[MOST];
    int found = load(gpus);
    if (found < 0) return DRIVER_NOT_LOADED;
    *count = (unsigned)found;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    Gpu gpu;
    int code;
    *handle = (void *)((long)index + 1);
    code = find(*handle, &gpu);
    return code == INVALID ? NOT_FOUND : code;
}

int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    Gpu gpu;
    int code = find(handle, &gpu);
    memory[0] = (unsigned long long)gpu.memory << 20; /* total, free, used */
    memory[2] = (unsigned long long)gpu.used << 20;
    memory[1] = memory[0] - memory[2];
    return code;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    Gpu gpu;
    int code = find(handle, &gpu);
    rates[0] = gpu.utilisation;
    rates[1] = 0;
    return code;
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
    Gpu gpu;
    int code = find(handle, &gpu);
    (void)sensor;
    *celsius = gpu.temperature;
    return code;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
    Gpu gpu;
    int code = find(handle, &gpu);
    *milliwatts = gpu.power * 1000;
    return code;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    Gpu gpu;
    int code = find(handle, &gpu);
    snprintf(uuid, length, "%s", gpu.uuid);
    return code;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    Gpu gpu;
    int code = find(handle, &gpu);
    snprintf(name, length, "%s", gpu.name);
    return code;
}
