/* A libnvidia-ml.so.1 whose GPUs are the lines of the file FAKE_NVML, read at every call:
 *
 *     gpu UUID MEMORY_MIB USED_MIB UTILISATION TEMPERATURE POWER_W STATE NAME...
 *     mig UUID MEMORY_MIB USED_MIB NAME...         an instance of the GPU above it
 *     proc PID USED_MIB                            on the GPU or instance above it
 *     mps PID USED_MIB                             the same, a client of the MPS daemon
 *     driver NUMBER                                a release with the quirks of its time (570)
 *
 * STATE is
 *     ok
 *     lost     every question fails; after that it stays lost until NVML was closed and opened
 *     broken   every question fails with an error of no meaning
 *     denied   who computes there is not told
 *     hangs    no question is answered until the file says something else
 *     split    MIG is on, with or without instances
 *     unified  it has the machine's memory and none of its own (GB10)
 *     numa     the operating system gives out its memory, and keeps some (GH200)
 *     boxed    in a container: the memory of a process is told as 0
 *
 * The library itself fails to start when there is no such file. A driver before 510 lacks the
 * third version of the list of processes and the second of the memory; one of 535 has a third
 * version of another form.
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
    DRIVER_NOT_LOADED = 9, NO_FUNCTION = 13, LOST = 15, UNKNOWN = 999, RESERVED_MIB = 300, MOST = 32, MOST_PROCS = 16, PARTS = 100
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
    Process procs[MOST_PROCS], clients[MOST_PROCS];
    unsigned proc_count, client_count;
} Gpu;

static int opened, release = 570; /* how often NVML is open; the driver */
static char went_away[MOST]; /* GPUs that this opening of NVML has seen lost */

static void add_proc(Process *procs, unsigned *count, unsigned pid, unsigned mib) {
    if (*count == MOST_PROCS) return;
    Process *p = &procs[(*count)++];
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
                add_proc(gpus[i].procs, &gpus[i].proc_count, pid,
                         strcmp(gpus[i].state, "boxed") ? mib : 0);
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
    release = 570;
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
            add_proc(gpus[count - 1].procs, &gpus[count - 1].proc_count, pid, mib);
        } else if (count && sscanf(line, "mps %u %u", &pid, &mib) == 2) {
            add_proc(gpus[count - 1].clients, &gpus[count - 1].client_count, pid, mib);
        } else {
            sscanf(line, "driver %d", &release);
        }
    }
    fclose(file);
    add_held(gpus, count);
    return count;
}

static int parts(int index) {
    Gpu gpus[MOST];
    int count = load(gpus), found = 0;
    for (int i = 0; i < count; i++) found += gpus[i].index == index && gpus[i].part >= 0;
    return found;
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
    if (strcmp(gpu->state, "lost") == 0) went_away[index] = 1;
    if (strcmp(gpu->state, "broken") == 0) return UNKNOWN;
    return went_away[index] ? LOST : OK;
}

int nvmlInitWithFlags(unsigned flags) {
    Gpu gpus[MOST];
    (void)flags;
    if (load(gpus) < 0) return DRIVER_NOT_LOADED;
    if (!opened++) memset(went_away, 0, sizeof went_away);
    return OK;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    opened -= opened > 0;
    return OK;
}

const char *nvmlErrorString(int code) {
    if (code == LOST) return "GPU is lost";
    if (code == DRIVER_NOT_LOADED) return "Driver Not Loaded";
    if (code == NO_FUNCTION) return "Function Not Found";
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

/* The first version counts what the driver has set aside as used. */
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    Gpu gpu;
    int code = find(handle, &gpu);
    if (code == OK && strcmp(gpu.state, "unified") == 0) return NOT_SUPPORTED;
    if (code == OK && strcmp(gpu.state, "split") == 0 && gpu.part < 0) return NO_PERMISSION;
    memory[0] = (unsigned long long)gpu.memory << 20; /* total, free, used */
    memory[2] = (unsigned long long)(gpu.used + RESERVED_MIB) << 20;
    memory[1] = memory[0] - memory[2];
    return code;
}

int nvmlDeviceGetMemoryInfo_v2(void *handle, unsigned long long *memory) {
    Gpu gpu;
    int code = nvmlDeviceGetMemoryInfo(handle, memory + 1);
    if (release < 510) return NO_FUNCTION;
    if (code != OK) return code;
    find(handle, &gpu);
    memory[3] = memory[2]; /* version, total, reserved, free, used */
    memory[2] = (unsigned long long)RESERVED_MIB << 20;
    memory[4] = (unsigned long long)gpu.used << 20;
    return OK;
}

int nvmlDeviceGetNumaNodeId(void *handle, unsigned *node) {
    Gpu gpu;
    int code = find(handle, &gpu);
    *node = 1;
    return code == OK && strcmp(gpu.state, "numa") ? NOT_SUPPORTED : code;
}

int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    Gpu gpu;
    int code = find(handle, &gpu);
    if (code == OK && (gpu.part >= 0 || parts(gpu.index))) return NOT_SUPPORTED;
    rates[0] = gpu.utilisation;
    rates[1] = 0;
    return code;
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *celsius) {
    Gpu gpu;
    int code = find(handle, &gpu);
    (void)sensor;
    if (code == OK && gpu.part >= 0) return INVALID;
    *celsius = gpu.temperature;
    return code;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
    Gpu gpu;
    int code = find(handle, &gpu);
    if (code == OK && gpu.part >= 0) return NOT_SUPPORTED;
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

static int list(void *handle, unsigned *count, Process *procs, int clients) {
    Gpu gpu;
    int code = find(handle, &gpu);
    if (code != OK) return code;
    if (strcmp(gpu.state, "denied") == 0) return NO_PERMISSION;
    unsigned room = *count, found = clients ? gpu.client_count : gpu.proc_count;
    *count = found;
    if (!found) return OK;
    if (!procs || room < found) return TOO_SMALL;
    memcpy(procs, clients ? gpu.clients : gpu.procs, found * sizeof *procs);
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *procs) {
    int code = release < 510 ? NO_FUNCTION : list(handle, count, procs, 0);
    if (release == 535 && code == OK && *count > 1) { /* 8 bytes later than callers think */
        memmove((char *)&procs[1] + 8, &procs[1], sizeof *procs - 8);
        memset(&procs[1], 0, 8);
    }
    return code;
}
int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *count, Process *procs) {
    return list(handle, count, procs, 0);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *handle, unsigned *count, Process *procs) {
    return release < 510 ? NO_FUNCTION : list(handle, count, procs, 1);
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    Gpu gpu;
    int code = find(handle, &gpu);
    *current = *pending = code == OK && (parts(gpu.index) > 0 || !strcmp(gpu.state, "split"));
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
