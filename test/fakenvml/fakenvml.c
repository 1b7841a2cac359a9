// fakenvml is a libnvidia-ml.so.1 without a driver: it answers from a text file that tests rewrite while it
// is in use. See README.md for the file. It depends on libc alone and has no state worth keeping.
//
// The structures are those of nvml.h, written out so that no header of NVIDIA's is needed.
#define _DEFAULT_SOURCE // not _GNU_SOURCE: that would bind strtoull to a glibc as new as the builder's
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MAX_GPUS 16
#define MAX_XIDS 256
#define MAX_MIG 8 // MIG devices of a GPU; real ones have seven at most
#define MAX_LINKS 18
#define NVML_GPM_METRIC_MAX 477 // of go-nvml v0.13.4; only the first num_metrics are touched

typedef unsigned int ret;
enum {
  SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
  INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15,
};

typedef unsigned long long u64;

struct gpu {
  char name[96], uuid[96], serial[32], vbios[32], bus[32], fabric[64];
  double memory_total, memory_used, memory_reserved; // MiB
  double util, memory_util, encoder, decoder;        // percent
  double temp, memory_temp, slowdown_temp, shutdown_temp;
  double power, power_limit, energy; // W, W, J
  double sm_clock, mem_clock, sm_clock_max, mem_clock_max; // MHz
  double pstate, fan, clock_reasons;
  double pcie_replays, pcie_gen, pcie_width;
  double nvlink_tx, nvlink_rx; // bytes
  double ecc_corrected, ecc_uncorrected;
  double remapped_correctable, remapped_uncorrectable, remap_pending, remap_failed;
  double throttle_power, throttle_thermal; // seconds
  double recovery_action, sram_exceeded, persistence;
  double fabric_state, fabric_status, fabric_health;
  double cc, minor, clique, mig, mig_pending, gpm;
  double lost, hang, code;
};

// mig is one MIG device. What is not said about it is that of a 1g.10gb of an H100.
struct mig {
  int gpu, index, gi, ci;
  char profile[32], uuid[96];
  double memory_total, memory_used, memory_reserved; // MiB
  double util, sms, gi_slices, ci_slices, copy, decoder, encoder, jpeg, ofa;
  double code, hang;
};

struct link { char to[32]; int count; }; // to is a GPU's number, "switch" or "cpu"

struct xid { int gpu; u64 type; u64 code; u64 seq; }; // type is nvmlEventType…

struct state {
  char driver[80], nvml[80], node[256];
  int cuda, gpus, init;
  struct gpu gpu[MAX_GPUS];
  struct xid xid[MAX_XIDS];
  int xids;
  struct mig mig[MAX_GPUS][MAX_MIG];
  int migs[MAX_GPUS];
  struct link link[MAX_GPUS][MAX_LINKS];
  int links[MAX_GPUS]; // -1: no line said anything, and there are 18 to switches
};

static const int buses[MAX_GPUS] = {0x1b, 0x43, 0x52, 0x61, 0x9d, 0xc3, 0xd1, 0xdf, 0x1c, 0x44, 0x53, 0x62, 0x9e, 0xc4, 0xd2, 0xe0};

// The reading that a value of UNSUPPORTED stands for is answered with NOT_SUPPORTED.
#define UNSUPPORTED (-1.0)

// defaults is eight H100s, the same as the agent's own simulation of them.
static void defaults(struct state *s) {
  memset(s, 0, sizeof *s);
  strcpy(s->driver, "550.163.01");
  strcpy(s->nvml, "12.550.163.01");
  s->cuda = 12040;
  s->gpus = 8;
  for (int i = 0; i < MAX_GPUS; i++) {
    struct gpu *g = &s->gpu[i];
    strcpy(g->name, "NVIDIA H100 80GB HBM3");
    snprintf(g->uuid, sizeof g->uuid, "GPU-%08x-5140-4000-8000-%012x", 0x2330u << 16 | (unsigned)i, (unsigned)i);
    snprintf(g->serial, sizeof g->serial, "%04d%09d", 0x2330, i);
    strcpy(g->vbios, "96.00.99.00.01");
    snprintf(g->bus, sizeof g->bus, "00000000:%02X:00.0", buses[i]);
    strcpy(g->fabric, "00000000-0000-0000-0000-000000000001");
    g->minor = i;
    g->cc = 9.0;
    g->mig = 0, g->mig_pending = UNSUPPORTED; // unsupported: the same as mig
    s->links[i] = -1;
    g->gpm = 1;
    g->memory_total = 81920, g->memory_used = 1024 * (i + 1), g->memory_reserved = 546;
    g->util = 10 * (i + 1), g->memory_util = 5 * (i + 1);
    g->temp = 40 + i, g->memory_temp = 45 + i, g->slowdown_temp = 87, g->shutdown_temp = 92;
    g->power = 300 + i, g->power_limit = 700, g->energy = 1000000 + i;
    g->sm_clock = 1980, g->mem_clock = 2619, g->sm_clock_max = 1980, g->mem_clock_max = 2619;
    g->fan = UNSUPPORTED;
    g->pcie_gen = 5, g->pcie_width = 16;
    g->recovery_action = UNSUPPORTED; // needs driver 565 or newer
    g->persistence = 1;
    g->fabric_state = 3;
  }
}

#define TEXT(f) {#f, offsetof(struct gpu, f), sizeof(((struct gpu *)0)->f)}
#define NUMBER(f) {#f, offsetof(struct gpu, f), 0}
struct key { const char *key; size_t at, size; };
static const struct key keys[] = {
  TEXT(name), TEXT(uuid), TEXT(serial), TEXT(vbios), TEXT(bus), TEXT(fabric),
  NUMBER(memory_total), NUMBER(memory_used), NUMBER(memory_reserved), NUMBER(util), NUMBER(memory_util),
  NUMBER(encoder), NUMBER(decoder), NUMBER(temp), NUMBER(memory_temp), NUMBER(slowdown_temp), NUMBER(shutdown_temp),
  NUMBER(power), NUMBER(power_limit), NUMBER(energy), NUMBER(sm_clock), NUMBER(mem_clock), NUMBER(sm_clock_max),
  NUMBER(mem_clock_max), NUMBER(pstate), NUMBER(fan), NUMBER(clock_reasons), NUMBER(pcie_replays), NUMBER(pcie_gen),
  NUMBER(pcie_width), NUMBER(nvlink_tx), NUMBER(nvlink_rx), NUMBER(ecc_corrected), NUMBER(ecc_uncorrected),
  NUMBER(remapped_correctable), NUMBER(remapped_uncorrectable), NUMBER(remap_pending), NUMBER(remap_failed),
  NUMBER(throttle_power), NUMBER(throttle_thermal), NUMBER(recovery_action), NUMBER(sram_exceeded), NUMBER(persistence),
  NUMBER(fabric_state), NUMBER(fabric_status), NUMBER(fabric_health), NUMBER(cc), NUMBER(minor),
  NUMBER(clique), NUMBER(mig), NUMBER(mig_pending), NUMBER(gpm), NUMBER(lost), NUMBER(hang), NUMBER(code),
};

#undef TEXT
#undef NUMBER
#define TEXT(f) {#f, offsetof(struct mig, f), sizeof(((struct mig *)0)->f)}
#define NUMBER(f) {#f, offsetof(struct mig, f), 0}
static const struct key mig_keys[] = {
  TEXT(uuid), NUMBER(memory_total), NUMBER(memory_used), NUMBER(memory_reserved), NUMBER(util), NUMBER(sms),
  NUMBER(gi_slices), NUMBER(ci_slices), NUMBER(copy), NUMBER(decoder), NUMBER(encoder), NUMBER(jpeg), NUMBER(ofa),
  NUMBER(code), NUMBER(hang),
};

static void complain(const char *line) { fprintf(stderr, "fakenvml: cannot read the line: %s\n", line); }

// set applies one key=value to a GPU or a MIG device.
static int set(void *g, const struct key *keys, size_t n, const char *key, const char *value) {
  for (size_t i = 0; i < n; i++) {
    if (strcmp(key, keys[i].key)) continue;
    char *field = (char *)g + keys[i].at;
    if (keys[i].size) {
      snprintf(field, keys[i].size, "%s", value);
      return 1;
    }
    char *end;
    double n = strcmp(value, "unsupported") ? strtod(value, &end) : (end = "", UNSUPPORTED);
    if (*end || end == value) return 0;
    *(double *)field = n;
    return 1;
  }
  return 0;
}

// word takes the next word off *p; double quotes hold blanks together.
static char *word(char **p) {
  char *in = *p + strspn(*p, " \t\r\n"), *out = in, *start = in;
  if (!*in || *in == '#') return NULL;
  int quoted = 0;
  for (; *in && (quoted || !strchr(" \t\r\n", *in)); in++) {
    if (*in == '"') quoted = !quoted;
    else *out++ = *in;
  }
  *p = *in ? in + 1 : in;
  *out = 0;
  return start;
}

// parse_mig reads the rest of "mig GPU PROFILE gi=N ci=N key=value…".
static int parse_mig(struct state *s, int gpu, char **p) {
  char *profile = word(p);
  if (!profile || s->migs[gpu] == MAX_MIG) return 0;
  struct mig m = {.gpu = gpu, .index = s->migs[gpu], .gi = -1, .ci = 0};
  snprintf(m.profile, sizeof m.profile, "%s", profile);
  m.memory_total = 9984, m.memory_used = 100, m.memory_reserved = 66, m.util = 10, m.sms = 16;
  m.gi_slices = 1, m.ci_slices = 1, m.copy = 1, m.decoder = 1, m.jpeg = 1;
  for (char *kv; (kv = word(p));) {
    char *value = strchr(kv, '=');
    if (!value) return 0;
    *value++ = 0;
    if (!strcmp(kv, "gi")) m.gi = atoi(value);
    else if (!strcmp(kv, "ci")) m.ci = atoi(value);
    else if (!strcmp(kv, "index")) m.index = atoi(value);
    else if (!set(&m, mig_keys, sizeof mig_keys / sizeof *mig_keys, kv, value)) return 0;
  }
  if (m.gi < 0 || m.index < 0 || m.index >= MAX_MIG) return 0;
  if (!*m.uuid) snprintf(m.uuid, sizeof m.uuid, "MIG-%08x-5140-4000-8000-%04x%04x%04x", 0x2330u << 16 | (unsigned)gpu, (unsigned)gpu, (unsigned)m.gi, (unsigned)m.ci);
  s->mig[gpu][s->migs[gpu]++] = m;
  return 1;
}

// parse_link reads the rest of "nvlink GPU COUNT TO", the first of which replaces the default.
static int parse_link(struct state *s, int gpu, char **p) {
  char *count = word(p), *to = word(p);
  int n = s->links[gpu] < 0 ? 0 : s->links[gpu];
  if (!count || n == MAX_LINKS) return 0;
  struct link l = {.count = atoi(count)};
  snprintf(l.to, sizeof l.to, "%s", to ? to : "switch");
  s->link[gpu][n] = l;
  s->links[gpu] = n + 1;
  return 1;
}

static void parse_line(struct state *s, char *line) {
  char copy[4096];
  snprintf(copy, sizeof copy, "%s", line);
  copy[strcspn(copy, "\n")] = 0;
  char *p = line, *what = word(&p), *arg = what ? word(&p) : NULL;
  if (!what) return;
  if (!arg) { complain(copy); return; }
  if (!strcmp(what, "driver")) { snprintf(s->driver, sizeof s->driver, "%s", arg); return; }
  if (!strcmp(what, "nvml")) { snprintf(s->nvml, sizeof s->nvml, "%s", arg); return; }
  if (!strcmp(what, "node")) { snprintf(s->node, sizeof s->node, "%s", arg); return; }
  if (!strcmp(what, "cuda")) { s->cuda = atoi(arg); return; }
  if (!strcmp(what, "init")) { s->init = atoi(arg); return; }
  if (!strcmp(what, "gpus") && atoi(arg) >= 0 && atoi(arg) <= MAX_GPUS) { s->gpus = atoi(arg); return; }
  int all = !strcmp(arg, "*"), i = all ? 0 : atoi(arg);
  if (i < 0 || i >= MAX_GPUS) { complain(copy); return; }
  u64 type = !strcmp(what, "xid") ? 8 : !strcmp(what, "unavailable") ? 0x4000 : !strcmp(what, "recovery") ? 0x8000 : !strcmp(what, "migchange") ? 0x100 : 0;
  if (type) {
    char *code = type == 8 ? word(&p) : "0", *seq = word(&p);
    if (!code || !seq || strncmp(seq, "seq=", 4) || s->xids == MAX_XIDS) { complain(copy); return; }
    s->xid[s->xids++] = (struct xid){i, type, strtoull(code, NULL, 10), strtoull(seq + 4, NULL, 10)};
    return;
  }
  if (!strcmp(what, "mig") || !strcmp(what, "nvlink")) {
    if (all || !(*what == 'm' ? parse_mig : parse_link)(s, i, &p)) complain(copy);
    return;
  }
  if (strcmp(what, "gpu")) { complain(copy); return; }
  for (char *kv; (kv = word(&p));) {
    char *value = strchr(kv, '=');
    if (!value) { complain(copy); return; }
    *value++ = 0;
    for (int j = all ? 0 : i; j <= (all ? MAX_GPUS - 1 : i); j++)
      if (!set(&s->gpu[j], keys, sizeof keys / sizeof *keys, kv, value)) { complain(copy); return; }
  }
}

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER; // guards what follows
static struct state current;
static struct stat seen;
static int loaded;
static int initialised;
static int node = -1; // open while initialised, as a driver's device file is

static int same(const struct stat *a, const struct stat *b) {
  return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size &&
         a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

// refresh reads the file again when it is another one. mu is held.
static void refresh(void) {
  struct stat now;
  memset(&now, 0, sizeof now);
  const char *path = getenv("FAKENVML_STATE");
  FILE *f = path ? fopen(path, "re") : NULL;
  if (f) fstat(fileno(f), &now);
  if (!loaded || !same(&now, &seen)) {
    defaults(&current);
    char line[4096];
    while (f && fgets(line, sizeof line, f)) parse_line(&current, line);
    seen = now;
    loaded = 1;
  }
  if (f) fclose(f);
}

static void nap(void) { nanosleep(&(struct timespec){0, 10000000}, NULL); }

// A handle is the address of one of these; mig is the index of a MIG device and one, 0 for the GPU itself.
struct handle { int index, mig; };
static struct handle handles[MAX_GPUS] = {{0, 0}, {1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}, {6, 0}, {7, 0}, {8, 0}, {9, 0}, {10, 0}, {11, 0}, {12, 0}, {13, 0}, {14, 0}, {15, 0}};
typedef struct handle *device;

// look copies a GPU's present state, as long as it hangs not at all.
static ret look(int index, struct gpu *g) {
  for (;;) {
    pthread_mutex_lock(&mu);
    refresh();
    int on = initialised, init = current.init, known = index >= 0 && index < current.gpus;
    if (known) *g = current.gpu[index];
    pthread_mutex_unlock(&mu);
    if (!on) return UNINITIALIZED;
    if (init) return (ret)init;
    if (!known) return INVALID_ARGUMENT;
    if (g->hang <= 0) break;
    nap();
  }
  if (g->lost > 0) return GPU_IS_LOST;
  return (ret)g->code;
}

// LOOK is of functions that know nothing of MIG devices.
#define LOOK                                          \
  struct gpu g;                                       \
  if (!d) return INVALID_ARGUMENT;                    \
  ret r = look(d->index, &g);                         \
  if (r) return r;                                    \
  if (d->mig) return NOT_SUPPORTED

// find copies the MIG device with an index, or with its handle's. 0 is a gap.
static int find_mig(int gpu, int index, struct mig *m) {
  pthread_mutex_lock(&mu);
  int found = 0;
  for (int i = 0; i < current.migs[gpu] && current.gpu[gpu].mig > 0 && !found; i++)
    if (current.mig[gpu][i].index == index) *m = current.mig[gpu][i], found = 1;
  pthread_mutex_unlock(&mu);
  return found;
}

// LOOK_MIG is of functions that answer for a MIG device too; m is it, and in_mig says that there is one.
#define LOOK_MIG                                      \
  struct gpu g;                                       \
  struct mig m;                                       \
  if (!d) return INVALID_ARGUMENT;                    \
  int in_mig = d->mig;                                \
  ret r;                                              \
  do {                                                \
    if ((r = look(d->index, &g))) return r;           \
    if (!in_mig) break;                               \
    if (!find_mig(d->index, d->mig - 1, &m)) return INVALID_ARGUMENT; \
    if (m.code) return (ret)m.code;                   \
    if (m.hang > 0) nap();                            \
  } while (m.hang > 0)

// GIVE answers one number, or NOT_SUPPORTED.
#define GIVE(out, value, unit)                        \
  do {                                                \
    if ((value) == UNSUPPORTED) return NOT_SUPPORTED; \
    *(out) = (__typeof__(*(out)))((value) * (unit));  \
    return SUCCESS;                                   \
  } while (0)

static ret text(char *out, unsigned size, const char *value) {
  if (strlen(value) >= size) return INSUFFICIENT_SIZE;
  strcpy(out, value);
  return SUCCESS;
}

EXPORT ret nvmlInit_v2(void) {
  pthread_mutex_lock(&mu);
  refresh();
  ret r = (ret)current.init;
  if (!r && !initialised++ && *current.node) node = open(current.node, O_RDONLY | O_CLOEXEC);
  pthread_mutex_unlock(&mu);
  return r;
}
EXPORT ret nvmlInit(void) { return nvmlInit_v2(); }
EXPORT ret nvmlShutdown(void) {
  pthread_mutex_lock(&mu);
  ret r = initialised ? SUCCESS : UNINITIALIZED;
  if (initialised && !--initialised && node >= 0) {
    close(node);
    node = -1;
  }
  pthread_mutex_unlock(&mu);
  return r;
}
EXPORT const char *nvmlErrorString(ret r) { return r ? "fakenvml: an error" : "fakenvml: success"; }

// copy is the present state of everything but the GPUs.
static ret copy(struct state *s) {
  pthread_mutex_lock(&mu);
  refresh();
  *s = current;
  int on = initialised;
  pthread_mutex_unlock(&mu);
  return on ? (ret)s->init : UNINITIALIZED;
}
EXPORT ret nvmlSystemGetDriverVersion(char *v, unsigned n) { struct state s; ret r = copy(&s); return r ? r : text(v, n, s.driver); }
EXPORT ret nvmlSystemGetNVMLVersion(char *v, unsigned n) { struct state s; ret r = copy(&s); return r ? r : text(v, n, s.nvml); }
EXPORT ret nvmlSystemGetCudaDriverVersion(int *v) { struct state s; ret r = copy(&s); *v = s.cuda; return r; }
EXPORT ret nvmlDeviceGetCount_v2(unsigned *n) { struct state s; ret r = copy(&s); *n = (unsigned)s.gpus; return r; }
EXPORT ret nvmlDeviceGetHandleByIndex_v2(unsigned i, device *d) {
  struct gpu g;
  ret r = look((int)i, &g);
  if (!r) *d = &handles[i];
  return r;
}

typedef struct {
  char legacy[16];
  unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
  char id[32];
} pci_info;
EXPORT ret nvmlDeviceGetPciInfo_v3(device d, pci_info *p) {
  LOOK;
  memset(p, 0, sizeof *p);
  sscanf(g.bus, "%x:%x:%x", &p->domain, &p->bus, &p->device);
  snprintf(p->legacy, sizeof p->legacy, "%04X:%02X:%02X.0", p->domain & 0xffff, p->bus & 0xff, p->device & 0xff);
  return text(p->id, sizeof p->id, g.bus);
}
EXPORT ret nvmlDeviceGetUUID(device d, char *v, unsigned n) { LOOK_MIG; return text(v, n, in_mig ? m.uuid : g.uuid); }
EXPORT ret nvmlDeviceGetName(device d, char *v, unsigned n) {
  LOOK_MIG;
  char name[160];
  snprintf(name, sizeof name, in_mig && *m.profile != '-' ? "%s MIG %s" : "%s", g.name, m.profile);
  return text(v, n, name);
}
EXPORT ret nvmlDeviceGetSerial(device d, char *v, unsigned n) { LOOK; return text(v, n, g.serial); }
EXPORT ret nvmlDeviceGetVbiosVersion(device d, char *v, unsigned n) { LOOK; return text(v, n, g.vbios); }
EXPORT ret nvmlDeviceGetMinorNumber(device d, unsigned *v) { LOOK; GIVE(v, g.minor, 1); }
EXPORT ret nvmlDeviceGetCudaComputeCapability(device d, int *major, int *minor) {
  LOOK;
  *major = (int)g.cc;
  *minor = (int)(g.cc * 10 + 0.5) % 10;
  return SUCCESS;
}
EXPORT ret nvmlDeviceGetMigMode(device d, unsigned *now, unsigned *pending) {
  LOOK;
  *pending = (g.mig_pending == UNSUPPORTED ? g.mig : g.mig_pending) > 0;
  GIVE(now, g.mig, 1);
}

typedef struct { u64 total, free, used; } memory;
EXPORT ret nvmlDeviceGetMemoryInfo(device d, memory *v) {
  LOOK_MIG;
  v->total = (u64)(in_mig ? m.memory_total : g.memory_total) << 20;
  v->used = (u64)(in_mig ? m.memory_used + m.memory_reserved : g.memory_used + g.memory_reserved) << 20;
  v->free = v->total - v->used;
  return SUCCESS;
}
typedef struct { u64 total, free, used; } bar1;
EXPORT ret nvmlDeviceGetBAR1MemoryInfo(device d, bar1 *v) {
  LOOK_MIG;
  v->total = (u64)(in_mig ? m.memory_total : g.memory_total) << 20, v->used = 2 << 20, v->free = v->total - v->used;
  return SUCCESS;
}
typedef struct { unsigned gpu, memory; } utilization;
EXPORT ret nvmlDeviceGetUtilizationRates(device d, utilization *u) {
  LOOK;
  if (g.mig > 0) return NOT_SUPPORTED;
  u->memory = (unsigned)g.memory_util;
  GIVE(&u->gpu, g.util, 1);
}
EXPORT ret nvmlDeviceGetEncoderUtilization(device d, unsigned *v, unsigned *us) { LOOK; if (g.mig > 0) return NOT_SUPPORTED; *us = 167000; GIVE(v, g.encoder, 1); }
EXPORT ret nvmlDeviceGetDecoderUtilization(device d, unsigned *v, unsigned *us) { LOOK; if (g.mig > 0) return NOT_SUPPORTED; *us = 167000; GIVE(v, g.decoder, 1); }
EXPORT ret nvmlDeviceGetTemperature(device d, int sensor, unsigned *v) { LOOK; (void)sensor; GIVE(v, g.temp, 1); }
EXPORT ret nvmlDeviceGetTemperatureThreshold(device d, int which, unsigned *v) {
  LOOK;
  if (which == 0) GIVE(v, g.shutdown_temp, 1);
  if (which == 1) GIVE(v, g.slowdown_temp, 1);
  return NOT_SUPPORTED;
}
EXPORT ret nvmlDeviceGetPowerUsage(device d, unsigned *v) { LOOK; GIVE(v, g.power, 1000); }
EXPORT ret nvmlDeviceGetPowerManagementLimit(device d, unsigned *v) { LOOK; GIVE(v, g.power_limit, 1000); }
EXPORT ret nvmlDeviceGetEnforcedPowerLimit(device d, unsigned *v) { LOOK; GIVE(v, g.power_limit, 1000); }
EXPORT ret nvmlDeviceGetTotalEnergyConsumption(device d, u64 *v) { LOOK; GIVE(v, g.energy, 1000); }
EXPORT ret nvmlDeviceGetClockInfo(device d, int which, unsigned *v) { LOOK; GIVE(v, which == 2 ? g.mem_clock : g.sm_clock, 1); }
EXPORT ret nvmlDeviceGetMaxClockInfo(device d, int which, unsigned *v) { LOOK; GIVE(v, which == 2 ? g.mem_clock_max : g.sm_clock_max, 1); }
EXPORT ret nvmlDeviceGetPersistenceMode(device d, unsigned *v) { LOOK; GIVE(v, g.persistence, 1); }
EXPORT ret nvmlDeviceGetPerformanceState(device d, int *v) { LOOK; GIVE(v, g.pstate, 1); }
EXPORT ret nvmlDeviceGetFanSpeed(device d, unsigned *v) { LOOK; GIVE(v, g.fan, 1); }
EXPORT ret nvmlDeviceGetPcieReplayCounter(device d, unsigned *v) { LOOK; GIVE(v, g.pcie_replays, 1); }
EXPORT ret nvmlDeviceGetCurrPcieLinkGeneration(device d, unsigned *v) { LOOK; GIVE(v, g.pcie_gen, 1); }
EXPORT ret nvmlDeviceGetCurrPcieLinkWidth(device d, unsigned *v) { LOOK; GIVE(v, g.pcie_width, 1); }
EXPORT ret nvmlDeviceGetTotalEccErrors(device d, int type, int counter, u64 *v) {
  LOOK;
  (void)counter;
  GIVE(v, type == 0 ? g.ecc_corrected : g.ecc_uncorrected, 1);
}
EXPORT ret nvmlDeviceGetRemappedRows(device d, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
  LOOK;
  *uncorrected = (unsigned)g.remapped_uncorrectable, *pending = g.remap_pending > 0, *failed = g.remap_failed > 0;
  GIVE(corrected, g.remapped_correctable, 1);
}

typedef struct {
  unsigned id, scope;
  long long timestamp, latency;
  int type;
  ret r;
  union { double d; unsigned u; u64 ull; } v;
} field_value;
// field answers one field value: type 1 is unsigned int, 3 unsigned long long (nvmlValueType_t).
static void field(field_value *f, int type, double value, double unit) {
  f->type = type;
  f->r = value == UNSUPPORTED ? NOT_SUPPORTED : SUCCESS;
  if (f->r) return;
  f->v.ull = 0;
  if (type == 1) f->v.u = (unsigned)(value * unit);
  else f->v.ull = (u64)(value * unit);
}
EXPORT ret nvmlDeviceGetFieldValues(device d, int n, field_value *v) {
  LOOK;
  for (int i = 0; i < n; i++) {
    switch (v[i].id) {
    case 74: field(&v[i], 3, g.throttle_power, 1e9); break;
    case 75: field(&v[i], 3, g.throttle_thermal, 1e9); break;
    case 82: field(&v[i], 1, g.memory_temp, 1); break;
    case 138: field(&v[i], 3, g.nvlink_tx, 1.0 / 1024); break;
    case 139: field(&v[i], 3, g.nvlink_rx, 1.0 / 1024); break;
    case 230: field(&v[i], 1, g.recovery_action, 1); break;
    default: v[i].r = NOT_SUPPORTED;
    }
  }
  return SUCCESS;
}

typedef struct {
  u64 last;             // events up to this sequence number are known
  u64 types[MAX_GPUS];  // registered; 0 for a GPU that is not in the set
  int files;       // inotify of the file's folder; -1 where it cannot be watched
} event_set;
// watch_files makes a wait for events cost nothing, as a driver's does.
static int watch_files(void) {
  char dir[4096];
  const char *path = getenv("FAKENVML_STATE");
  int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  if (fd < 0 || !path || strlen(path) >= sizeof dir) return fd;
  strcpy(dir, path);
  inotify_add_watch(fd, dirname(dir), IN_MOVED_TO | IN_CLOSE_WRITE | IN_DELETE);
  return fd;
}
static u64 newest(const struct state *s) {
  u64 n = 0;
  for (int i = 0; i < s->xids; i++)
    if (s->xid[i].seq > n) n = s->xid[i].seq;
  return n;
}
EXPORT ret nvmlEventSetCreate(event_set **set) {
  struct state s;
  ret r = copy(&s);
  if (r) return r;
  *set = malloc(sizeof **set);
  memset((*set)->types, 0, sizeof (*set)->types);
  (*set)->files = watch_files();
  (*set)->last = newest(&s); // like the real one, it tells nothing of what was before it
  return SUCCESS;
}
EXPORT ret nvmlEventSetFree(event_set *set) {
  if (set->files >= 0) close(set->files);
  free(set);
  return SUCCESS;
}
EXPORT ret nvmlDeviceRegisterEvents(device d, u64 types, event_set *set) {
  LOOK;
  pthread_mutex_lock(&mu);
  set->types[d->index] |= types;
  pthread_mutex_unlock(&mu);
  return SUCCESS;
}
typedef struct {
  device d;
  u64 type, data;
  unsigned gi, ci;
} event_data;
EXPORT ret nvmlEventSetWait_v2(event_set *set, event_data *e, unsigned ms) {
  struct timespec start, now;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (;;) {
    struct state s;
    char told[4096];
    while (set->files >= 0 && read(set->files, told, sizeof told) > 0) {} // before the look: no change is missed
    ret r = copy(&s);
    if (r) return r;
    const struct xid *next = NULL;
    for (int i = 0; i < s.xids; i++)
      if (s.xid[i].seq > set->last && s.xid[i].type & set->types[s.xid[i].gpu] && (!next || s.xid[i].seq < next->seq)) next = &s.xid[i];
    if (next) {
      set->last = next->seq;
      *e = (event_data){&handles[next->gpu], next->type, next->code, 0xffffffff, 0xffffffff};
      return SUCCESS;
    }
    for (int i = 0; i < MAX_GPUS; i++) // a lost GPU fails the waits for all GPUs of its set, at once
      if (set->types[i] && s.gpu[i].lost > 0) return GPU_IS_LOST;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long left = (long)ms - (now.tv_sec - start.tv_sec) * 1000 - (now.tv_nsec - start.tv_nsec) / 1000000;
    if (left <= 0) return TIMEOUT;
    struct pollfd changed = {set->files, POLLIN, 0};
    poll(&changed, 1, (int)left);
  }
}

// Of NVIDIA's device plugin alone, for benchmarks beside it: all GPUs are below one host bridge.
EXPORT ret nvmlDeviceGetTopologyCommonAncestor(device a, device b, unsigned *level) {
  *level = a == b ? 0 : 30;
  return SUCCESS;
}

#ifndef FAKENVML_OLD // what a driver of 2020 does not have
EXPORT ret nvmlDeviceGetSupportedEventTypes(device d, u64 *types) { LOOK; *types = 0xc108; return SUCCESS; }
typedef struct { unsigned version; u64 counts[11]; unsigned exceeded; } sram_status;
EXPORT ret nvmlDeviceGetSramEccErrorStatus(device d, sram_status *s) { LOOK; GIVE(&s->exceeded, g.sram_exceeded, 1); }
EXPORT ret nvmlDeviceGetMaxMigDeviceCount(device d, unsigned *n) { LOOK; *n = g.mig > 0 ? MAX_MIG : 0; return SUCCESS; }
static struct handle mig_handles[MAX_GPUS][MAX_MIG]; // filled in as they are given out
EXPORT ret nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned i, device *mig) {
  LOOK;
  struct mig m;
  if (i >= MAX_MIG) return INVALID_ARGUMENT;
  if (!find_mig(d->index, (int)i, &m)) return NOT_FOUND;
  mig_handles[d->index][i] = (struct handle){d->index, (int)i + 1};
  *mig = &mig_handles[d->index][i];
  return SUCCESS;
}
EXPORT ret nvmlDeviceIsMigDeviceHandle(device d, unsigned *v) { LOOK_MIG; *v = in_mig > 0; return SUCCESS; }
EXPORT ret nvmlDeviceGetIndex(device d, unsigned *v) { LOOK_MIG; *v = (unsigned)(in_mig ? m.index : d->index); return SUCCESS; }
EXPORT ret nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device mig, device *d) {
  if (!mig || !mig->mig) return INVALID_ARGUMENT;
  *d = &handles[mig->index];
  return SUCCESS;
}
EXPORT ret nvmlDeviceGetHandleByUUID(const char *uuid, device *d) {
  struct state s;
  ret r = copy(&s);
  for (int i = 0; !r && i < s.gpus; i++) {
    if (!strcmp(s.gpu[i].uuid, uuid)) return nvmlDeviceGetHandleByIndex_v2((unsigned)i, d);
    for (int j = 0; s.gpu[i].mig > 0 && j < s.migs[i]; j++)
      if (!strcmp(s.mig[i][j].uuid, uuid)) return nvmlDeviceGetMigDeviceHandleByIndex(&handles[i], (unsigned)s.mig[i][j].index, d);
  }
  return r ? r : NOT_FOUND;
}
EXPORT ret nvmlDeviceGetGpuInstanceId(device d, unsigned *v) { LOOK_MIG; if (!in_mig) return NOT_SUPPORTED; *v = (unsigned)m.gi; return SUCCESS; }
EXPORT ret nvmlDeviceGetComputeInstanceId(device d, unsigned *v) { LOOK_MIG; if (!in_mig) return NOT_SUPPORTED; *v = (unsigned)m.ci; return SUCCESS; }
typedef struct {
  unsigned sms, copy, decoder, encoder, jpeg, ofa, gi_slices, ci_slices;
  u64 memory;
} attributes;
EXPORT ret nvmlDeviceGetAttributes_v2(device d, attributes *a) {
  LOOK_MIG;
  if (!in_mig) return NOT_SUPPORTED;
  *a = (attributes){
    (unsigned)m.sms, (unsigned)m.copy, (unsigned)m.decoder, (unsigned)m.encoder, (unsigned)m.jpeg, (unsigned)m.ofa,
    (unsigned)m.gi_slices, (unsigned)m.ci_slices, (u64)m.memory_total,
  };
  return SUCCESS;
}

#ifndef FAKENVML_NO_PROFILES // what NVIDIA's nvcdi asks of a MIG device, and some drivers do not have
// A GPU instance or a compute instance is the handle of one of its MIG devices. Its profile is known by its slices: the
// ids are not the numbers of the profiles, as with the real library.
static const int profile_slices[] = {1, 2, 3, 4, 7, 8, 6}; // NVML_GPU_INSTANCE_PROFILE_1_SLICE and so on
#define PROFILES (sizeof profile_slices / sizeof *profile_slices)
static unsigned profile_id(double slices, unsigned base) {
  for (unsigned i = 0; i < PROFILES; i++)
    if (profile_slices[i] == (int)slices) return base + i;
  return base + PROFILES; // of no profile
}
// instance finds the MIG device of a GPU with these ids; any compute instance's where ci is below 0.
static ret instance(device d, int gi, int ci, device *found) {
  struct mig m;
  for (int i = 0; i < MAX_MIG; i++)
    if (find_mig(d->index, i, &m) && m.gi == gi && (ci < 0 || m.ci == ci)) return nvmlDeviceGetMigDeviceHandleByIndex(&handles[d->index], (unsigned)i, found);
  return NOT_FOUND;
}
EXPORT ret nvmlDeviceGetGpuInstanceById(device d, unsigned id, device *gi) { LOOK; return instance(d, (int)id, -1, gi); }
EXPORT ret nvmlGpuInstanceGetComputeInstanceById(device d, unsigned id, device *ci) { LOOK_MIG; return in_mig ? instance(d, m.gi, (int)id, ci) : INVALID_ARGUMENT; }
typedef struct { device d; unsigned id, profile, start, size; } gi_info;
EXPORT ret nvmlGpuInstanceGetInfo(device d, gi_info *v) {
  LOOK_MIG;
  if (!in_mig) return INVALID_ARGUMENT;
  *v = (gi_info){&handles[d->index], (unsigned)m.gi, profile_id(m.gi_slices, 100), 0, (unsigned)m.gi_slices};
  return SUCCESS;
}
typedef struct { device d, gi; unsigned id, profile, start, size; } ci_info;
EXPORT ret nvmlComputeInstanceGetInfo_v2(device d, ci_info *v) {
  LOOK_MIG;
  if (!in_mig) return INVALID_ARGUMENT;
  *v = (ci_info){&handles[d->index], d, (unsigned)m.ci, profile_id(m.ci_slices, 200), 0, (unsigned)m.ci_slices};
  return SUCCESS;
}
typedef struct { unsigned id, p2p, slices, instances, sms, copy, decoder, encoder, jpeg, ofa; u64 memory; } gi_profile;
EXPORT ret nvmlDeviceGetGpuInstanceProfileInfo(device d, unsigned profile, gi_profile *v) {
  LOOK;
  if (profile >= PROFILES) return NOT_SUPPORTED;
  *v = (gi_profile){.id = 100 + profile, .slices = (unsigned)profile_slices[profile], .instances = 1};
  return SUCCESS;
}
typedef struct { unsigned id, slices, instances, sms, copy, decoder, encoder, jpeg, ofa; } ci_profile;
EXPORT ret nvmlGpuInstanceGetComputeInstanceProfileInfo(device d, unsigned profile, unsigned engines, ci_profile *v) {
  LOOK_MIG;
  if (!in_mig || engines) return INVALID_ARGUMENT;
  if (profile >= PROFILES) return NOT_SUPPORTED;
  *v = (ci_profile){.id = 200 + profile, .slices = (unsigned)profile_slices[profile], .instances = 1};
  return SUCCESS;
}
#endif

// link_to is where a GPU's n-th link leads: "switch", "cpu" or a GPU's number; empty when it is down.
static void link_to(int gpu, unsigned n, char *to) {
  pthread_mutex_lock(&mu);
  *to = 0;
  if (current.links[gpu] < 0) strcpy(to, "switch");
  for (int i = 0; i < current.links[gpu]; n -= (unsigned)current.link[gpu][i++].count)
    if (n < (unsigned)current.link[gpu][i].count) { strcpy(to, current.link[gpu][i].to); break; }
  pthread_mutex_unlock(&mu);
}
#define LINK                                          \
  LOOK;                                               \
  if (n >= MAX_LINKS) return INVALID_ARGUMENT;        \
  char to[32];                                        \
  link_to(d->index, n, to)
EXPORT ret nvmlDeviceGetNvLinkState(device d, unsigned n, unsigned *on) {
  LINK;
  if (!strcmp(to, "unsupported")) return NOT_SUPPORTED;
  *on = *to != 0;
  return SUCCESS;
}
EXPORT ret nvmlDeviceGetNvLinkRemoteDeviceType(device d, unsigned n, unsigned *type) {
  LINK;
  *type = !strcmp(to, "switch") ? 2 : !strcmp(to, "cpu") ? 1 : 0;
  return *to ? SUCCESS : NOT_SUPPORTED;
}
EXPORT ret nvmlDeviceGetNvLinkRemotePciInfo_v2(device d, unsigned n, pci_info *p) {
  LINK;
  int peer = atoi(to);
  memset(p, 0, sizeof *p);
  if (*to >= '0' && *to <= '9' && peer < MAX_GPUS) return nvmlDeviceGetPciInfo_v3(&handles[peer], p);
  if (strcmp(to, "switch")) return NOT_SUPPORTED;
  strcpy(p->id, "00000000:F0:00.0"); // the switch's own
  strcpy(p->legacy, "0000:F0:00.0");
  p->bus = 0xf0;
  return SUCCESS;
}

typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;
EXPORT ret nvmlDeviceGetMemoryInfo_v2(device d, memory_v2 *v) {
  LOOK_MIG;
  v->total = (u64)(in_mig ? m.memory_total : g.memory_total) << 20;
  v->used = (u64)(in_mig ? m.memory_used : g.memory_used) << 20;
  v->reserved = (u64)(in_mig ? m.memory_reserved : g.memory_reserved) << 20;
  v->free = v->total - v->used - v->reserved;
  return SUCCESS;
}
EXPORT ret nvmlDeviceGetCurrentClocksEventReasons(device d, u64 *v) { LOOK; GIVE(v, g.clock_reasons, 1); }

typedef struct {
  unsigned version;
  unsigned char cluster[16];
  ret status;
  unsigned clique;
  unsigned char state;
  unsigned health;
} fabric_v2;
EXPORT ret nvmlDeviceGetGpuFabricInfoV(device d, fabric_v2 *f) {
  LOOK;
  if (!strcmp(g.fabric, "none")) return NOT_SUPPORTED;
  int n = 0;
  for (const char *p = g.fabric; *p && n < 16; p++) {
    unsigned byte;
    if (*p == '-') continue;
    if (sscanf(p, "%2x", &byte) != 1) break;
    f->cluster[n++] = (unsigned char)byte;
    p++;
  }
  f->status = (ret)g.fabric_status, f->clique = (unsigned)g.clique;
  f->state = (unsigned char)g.fabric_state, f->health = (unsigned)g.fabric_health;
  return SUCCESS;
}

typedef struct { unsigned version, supported; } gpm_support;
EXPORT ret nvmlGpmQueryDeviceSupport(device d, gpm_support *s) { LOOK_MIG; s->supported = g.gpm > 0; return SUCCESS; }
typedef struct { double util, memory_util; } gpm_sample;
EXPORT ret nvmlGpmSampleAlloc(gpm_sample **s) { *s = calloc(1, sizeof **s); return SUCCESS; }
EXPORT ret nvmlGpmSampleFree(gpm_sample *s) { free(s); return SUCCESS; }
EXPORT ret nvmlGpmSampleGet(device d, gpm_sample *s) { LOOK; s->util = g.util, s->memory_util = g.memory_util; return SUCCESS; }
EXPORT ret nvmlGpmMigSampleGet(device d, unsigned gi, gpm_sample *s) {
  LOOK;
  struct mig m;
  for (int i = 0; i < MAX_MIG; i++)
    if (find_mig(d->index, i, &m) && m.gi == (int)gi) { s->util = s->memory_util = m.util; return SUCCESS; }
  return NOT_FOUND;
}
typedef struct { unsigned id; ret r; double value; char *names[3]; } gpm_metric;
typedef struct {
  unsigned version, n;
  gpm_sample *before, *now;
  gpm_metric m[NVML_GPM_METRIC_MAX];
} gpm_metrics;
EXPORT ret nvmlGpmMetricsGet(gpm_metrics *q) {
  for (unsigned i = 0; i < q->n && i < NVML_GPM_METRIC_MAX; i++) {
    gpm_metric *m = &q->m[i];
    m->r = SUCCESS;
    switch (m->id) {
    case 1: case 2: m->value = q->now->util; break;
    case 3: m->value = q->now->util / 2; break;
    case 5: m->value = q->now->util / 4; break;
    case 10: m->value = q->now->memory_util; break;
    case 20: case 21: m->value = 100; break;
    default: m->r = NOT_SUPPORTED;
    }
  }
  return SUCCESS;
}
#endif
