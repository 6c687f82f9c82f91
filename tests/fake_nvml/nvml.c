/* A libnvidia-ml.so.1 whose GPUs are the lines of the file FAKE_NVML, read at every call:
 *
 *     gpu UUID MEMORY_MIB USED_MIB UTILISATION TEMPERATURE POWER_W STATE NAME...
 *     mig UUID MEMORY_MIB USED_MIB NAME...         an instance of the GPU above it
 *     proc PID USED_MIB                            on the GPU or instance above it
 *
 * STATE is `ok`, `lost` (every question fails), `denied` (who computes there is not told) or
 * `hangs` (no question is answered until the file says something else). The library itself fails
 * to start when there is no such file.
 *
 * A real process allocates with a file FAKE_NVML.held/INDEX-PID that holds a number of MiB: it is
 * on the list, and its memory in use, for as long as the process lives.
 */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TOO_SMALL = 7,
    DRIVER_NOT_LOADED = 9, LOST = 15, MOST = 32, MOST_PROCS = 16, PARTS = 100
};

typedef struct {
    unsigned pid;
    unsigned long long memory;
    unsigned instance, compute;
} Process; /* as nvmlProcessInfo_t */

typedef struct {
    char uuid[80], state[16], name[80];
    unsigned memory, used, utilisation, temperature, power;
    int index, part; /* part is -1 for a whole GPU */
    Process procs[MOST_PROCS];
    unsigned proc_count;
} Gpu;

static void add_proc(Gpu *g, unsigned pid, unsigned mib) {
    if (g->proc_count == MOST_PROCS) return;
    Process *p = &g->procs[g->proc_count++];
    p->pid = pid;
    p->memory = (unsigned long long)mib << 20;
    p->instance = p->compute = 0xFFFFFFFF;
}

static void add_held(Gpu *gpus, int count) {
    char folder[4096], path[4400];
    struct dirent *entry;
    snprintf(folder, sizeof folder, "%s.held", getenv("FAKE_NVML"));
    DIR *dir = opendir(folder);
    if (!dir) return;
    while ((entry = readdir(dir))) {
        unsigned index, pid, mib = 0;
        if (sscanf(entry->d_name, "%u-%u", &index, &pid) != 2) continue;
        if (kill((pid_t)pid, 0) != 0) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        int got = fscanf(file, "%u", &mib);
        fclose(file);
        for (int i = 0; got == 1 && i < count; i++)
            if (gpus[i].part < 0 && gpus[i].index == (int)index) {
                gpus[i].used += mib;
                add_proc(&gpus[i], pid, mib);
            }
    }
    closedir(dir);
}

static int load(Gpu *gpus) {
    const char *path = getenv("FAKE_NVML");
    char line[512];
    FILE *file = path ? fopen(path, "r") : NULL;
    int count = 0, whole = 0, part = 0;
    if (!file) return -1;
    memset(gpus, 0, MOST * sizeof *gpus);
    while (count < MOST && fgets(line, sizeof line, file)) {
        Gpu *g = &gpus[count];
        unsigned pid, mib;
        if (sscanf(line, "gpu %79s %u %u %u %u %u %15s %79[^\n]", g->uuid, &g->memory, &g->used,
                   &g->utilisation, &g->temperature, &g->power, g->state, g->name) == 8) {
            g->index = whole++;
            g->part = -1;
            part = 0;
            count++;
        } else if (count && sscanf(line, "mig %79s %u %u %79[^\n]", g->uuid, &g->memory, &g->used,
                                   g->name) == 4) {
            strcpy(g->state, gpus[count - 1].state);
            g->index = whole - 1;
            g->part = part++;
            count++;
        } else if (count && sscanf(line, "proc %u %u", &pid, &mib) == 2) {
            add_proc(&gpus[count - 1], pid, mib);
        }
    }
    fclose(file);
    add_held(gpus, count);
    return count;
}

static int find(void *handle, Gpu *gpu) {
    Gpu gpus[MOST];
    int index = (int)((long)handle / PARTS) - 1, part = (int)((long)handle % PARTS) - 1;
    for (;;) {
        int count = load(gpus), found = 0;
        for (int i = 0; i < count; i++)
            if (gpus[i].index == index && gpus[i].part == part) {
                *gpu = gpus[i];
                found = 1;
            }
        if (!found) return INVALID;
        if (strcmp(gpu->state, "hangs") != 0) break;
        usleep(20000);
    }
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
    if (code == NO_PERMISSION) return "Insufficient Permissions";
    return "Unknown Error";
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    Gpu gpus[MOST];
    int found = load(gpus);
    if (found < 0) return DRIVER_NOT_LOADED;
    *count = 0;
    for (int i = 0; i < found; i++) *count += gpus[i].part < 0;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    Gpu gpu;
    int code;
    *handle = (void *)(((long)index + 1) * PARTS);
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
    if (code == OK && gpu.part >= 0) return NOT_SUPPORTED;
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

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "%s", "555.42.06");
    return OK;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    Gpu gpu;
    int code = find(handle, &gpu);
    snprintf(name, length, "%s", gpu.name);
    return code;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *procs) {
    Gpu gpu;
    int code = find(handle, &gpu);
    if (code != OK) return code;
    if (strcmp(gpu.state, "denied") == 0) return NO_PERMISSION;
    unsigned room = *count;
    *count = gpu.proc_count;
    if (!gpu.proc_count) return OK;
    if (!procs || room < gpu.proc_count) return TOO_SMALL;
    memcpy(procs, gpu.procs, gpu.proc_count * sizeof *procs);
    return OK;
}

static int parts(int index) {
    Gpu gpus[MOST];
    int count = load(gpus), found = 0;
    for (int i = 0; i < count; i++) found += gpus[i].index == index && gpus[i].part >= 0;
    return found;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    Gpu gpu;
    int code = find(handle, &gpu);
    *current = *pending = code == OK && parts(gpu.index) > 0;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    (void)handle;
    *count = 7;
    return OK;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **part) {
    Gpu gpu;
    *part = (void *)((long)handle + index + 1);
    return find(*part, &gpu) == INVALID ? NOT_FOUND : OK;
}
