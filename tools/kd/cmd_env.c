#include "cmd.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct options {
    bool json;
} options;

static const kd_option rows[] = {
    { "json", KD_BOOL, offsetof(options, json), "false", 0, 0, "", "as one JSON object" },
    { 0 },
};

enum { MAX_DEVICES = 16, TEXT = 256 };

typedef struct environment {
    char instructions[TEXT]; /* vector instructions of the processor */
    double memory;           /* bytes of the machine */
    int threads;             /* of the CPU device */
    int device_count;
    char ids[MAX_DEVICES][32];
    char failures[MAX_DEVICES][TEXT];    /* why it does not open */
    kd_device_info devices[MAX_DEVICES]; /* of those that open */
} environment;

/* ---- finding ---------------------------------------------------------------------------------- */

/* The words of the processor's flags that decide how fast a product runs here. */
static void find_instructions(char *text, size_t size)
{
    static const char *const words[] = { "avx2",        "fma",         "avx512f",
                                         "avx512_bf16", "avx512_vnni", "amx_bf16",
                                         "asimd",       "sve",         "bf16" };
    char line[8192];
    size_t used = 0;
    text[0] = '\0';
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file) return;
    while (!used && fgets(line, sizeof line, file)) {
        if (strncmp(line, "flags", 5) != 0 && strncmp(line, "Features", 8) != 0) continue;
        for (char *word = strtok(line, " \t:\n"); word; word = strtok(NULL, " \t:\n"))
            for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
                if (strcmp(word, words[i]) == 0)
                    used +=
                        (size_t)snprintf(text + used, size - used, "%s%s", used ? " " : "", word);
        break;
    }
    fclose(file);
}

static void add_device(environment *e, const char *id)
{
    const int at = e->device_count++;
    kd_device *device;
    kd_device_info *info = &e->devices[at];
    snprintf(e->ids[at], sizeof e->ids[at], "%s", id);
    if (kd_device_open(&device, id) != KD_OK) {
        snprintf(e->failures[at], sizeof e->failures[at], "%s", kd_last_error());
        return;
    }
    kd_device_describe(info, device);
    kd_device_close(device);
    if (info->threads > 0) e->threads = info->threads;
}

/* A type that has none is shown with the reason, as is a device that does not open. */
static void add_devices(void *context, const char *type, int count)
{
    environment *e = context;
    if (count == 0 && e->device_count < MAX_DEVICES) add_device(e, type);
    for (int i = 0; i < count && e->device_count < MAX_DEVICES; i++) {
        char id[32];
        snprintf(id, sizeof id, "%s:%d", type, i);
        add_device(e, id);
    }
}

static void find(environment *e)
{
    find_instructions(e->instructions, sizeof e->instructions);
    e->memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    kd_device_each(add_devices, e);
}

/* ---- ranks ------------------------------------------------------------------------------------ */

enum { MAX_VARIABLES = 7 };

/* What launchers set, in the order in which they are believed. */
static const struct {
    const char *launcher, *variables[MAX_VARIABLES];
} launchers[] = {
    { "torchrun",
      { "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT" } },
    { "Open MPI",
      { "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE" } },
    { "PMI", { "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS" } },
    { "SLURM",
      { "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS",
        "SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST" } },
    { "NCCL", { "NCCL_COMM_ID" } },
};

enum { LAUNCHERS = (int)(sizeof launchers / sizeof launchers[0]) };

/* What a run that is started here would make of them. */
static void print_ranks(void)
{
    kd_rank_info info;
    const kd_status status = kd_ranks_describe(&info);
    for (int l = 0; l < LAUNCHERS; l++) {
        int variables = 0;
        for (int i = 0; i < MAX_VARIABLES && launchers[l].variables[i]; i++) {
            const char *value = getenv(launchers[l].variables[i]);
            if (!value) continue;
            if (!variables++) printf("launcher   %s:", launchers[l].launcher);
            printf(" %s=%s", launchers[l].variables[i], value);
        }
        if (variables) printf("\n");
    }
    if (status != KD_OK)
        printf("ranks      refused: %s\n", kd_last_error());
    else if (info.size == 1)
        printf("ranks      one process\n");
    else
        printf("ranks      rank %d of %d by %s, %d on its machine; would be joined by %s%s%s\n",
               info.rank, info.size, info.launcher, info.local, info.communicator,
               *info.meeting ? " at " : "", info.meeting);
    printf("joined by  %s; %s\n", info.mpi, info.nccl);
}

static void json_ranks(cmd_json *json)
{
    kd_rank_info info;
    const kd_status status = kd_ranks_describe(&info);
    cmd_json_open(json, "ranks", '{');
    if (status != KD_OK) {
        cmd_json_text(json, "refused", kd_last_error());
    } else {
        cmd_json_text(json, "launcher", info.launcher ? info.launcher : "");
        cmd_json_integer(json, "rank", info.rank);
        cmd_json_integer(json, "size", info.size);
        cmd_json_integer(json, "local", info.local);
        cmd_json_text(json, "communicator", info.communicator);
        cmd_json_text(json, "meeting", info.meeting);
    }
    cmd_json_text(json, "mpi", info.mpi);
    cmd_json_text(json, "nccl", info.nccl);
    cmd_json_open(json, "variables", '{');
    for (int l = 0; l < LAUNCHERS; l++)
        for (int i = 0; i < MAX_VARIABLES && launchers[l].variables[i]; i++)
            if (getenv(launchers[l].variables[i]))
                cmd_json_text(json, launchers[l].variables[i], getenv(launchers[l].variables[i]));
    cmd_json_close(json);
    cmd_json_close(json);
}

/* ---- printing --------------------------------------------------------------------------------- */

#if defined(__clang__)
static const char compiler[] = __VERSION__;
#else
static const char compiler[] = "gcc " __VERSION__;
#endif

static const char *name_of(const environment *e, int i)
{
    return *e->failures[i] ? e->failures[i] : e->devices[i].name;
}

/* "cuda:0  NVIDIA H100, sm_90, 85.5 GB, 84.9 GB free, driver 13.0, CUDA 13.0, cuBLASLt 13.1.0" */
static void print_device(const environment *e, int i)
{
    const kd_device_info *info = &e->devices[i];
    char bytes[32];
    printf("device     %s  %s", e->ids[i], name_of(e, i));
    if (info->total > 0) printf(", %s", kd_format_bytes(bytes, sizeof bytes, (double)info->total));
    if (info->memory < info->total)
        printf(", %s free", kd_format_bytes(bytes, sizeof bytes, (double)info->memory));
    if (*info->driver) printf(", driver %s", info->driver);
    if (*info->software) printf(", %s", info->software);
    printf("\n");
}

static void print_text(const environment *e)
{
    char memory[32];
    const char *threads = getenv("OMP_NUM_THREADS");
    printf("kd         %s\n", kd_version());
    printf("compiler   %s\n", compiler);
    printf("processor  %s\n",
           e->instructions[0] ? e->instructions : "no known vector instructions");
    printf("threads    %d (OMP_NUM_THREADS %s)\n", e->threads, threads ? threads : "not set");
    printf("memory     %s\n", kd_format_bytes(memory, sizeof memory, e->memory));
    for (int i = 0; i < e->device_count; i++) print_device(e, i);
    print_ranks();
}

static void print_json(const environment *e)
{
    cmd_json json = { .out = stdout };
    cmd_json_open(&json, NULL, '{');
    cmd_json_text(&json, "version", kd_version());
    cmd_json_text(&json, "compiler", compiler);
    cmd_json_text(&json, "instructions", e->instructions);
    cmd_json_integer(&json, "threads", e->threads);
    cmd_json_number(&json, "memory", e->memory);
    cmd_json_open(&json, "devices", '[');
    for (int i = 0; i < e->device_count; i++) {
        const kd_device_info *info = &e->devices[i];
        cmd_json_open(&json, NULL, '{');
        cmd_json_text(&json, "id", e->ids[i]);
        cmd_json_text(&json, "name", name_of(e, i));
        cmd_json_text(&json, "driver", info->driver);
        cmd_json_text(&json, "software", info->software);
        cmd_json_number(&json, "memory", (double)info->total);
        cmd_json_number(&json, "free", (double)info->memory);
        cmd_json_close(&json);
    }
    cmd_json_close(&json);
    json_ranks(&json);
    cmd_json_close(&json);
}

static kd_status env(const kd_args *args, const void *given)
{
    const options *o = given;
    static environment e;
    (void)args;
    find(&e);
    if (o->json)
        print_json(&e);
    else
        print_text(&e);
    return KD_OK;
}

kd_status cmd_env(int argc, char **argv)
{
    static const cmd_spec spec = { rows, 0, 0, "", false, NULL };
    options o;
    return cmd_run(&spec, &o, env, argc, argv);
}
