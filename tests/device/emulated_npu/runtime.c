/* CANN's runtime without a device: its memory is the host's, its streams and events have always finished. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { DEVICES = 8, NO_MEMORY = 207001 };
static __thread int32_t current = 0;

static int reserve(void **place, size_t size) {
    return posix_memalign(place, 512, size ? size : 512) ? NO_MEMORY : 0;
}

static int handle(void **place) {
    *place = malloc(64);
    return *place ? 0 : NO_MEMORY;
}

int aclrtGetDeviceCount(uint32_t *count) {
    const char *visible = getenv("ASCEND_RT_VISIBLE_DEVICES");
    *count = visible ? *visible != 0 : DEVICES;
    while (visible && (visible = strchr(visible, ','))) { ++*count; ++visible; }
    return 0;
}
int aclrtSetDevice(int32_t device) { current = device; return 0; }
int aclrtGetDevice(int32_t *device) { *device = current; return 0; }
int aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *active) { if (active) *active = 1; return 0; }
int aclrtGetCurrentContext(void **context) { static int only; *context = &only; return 0; }
int aclrtGetDeviceCapability(int32_t device, int32_t kind, int32_t *value) { *value = 0; return 0; }
int aclGetDeviceCapability(uint32_t device, int32_t kind, int64_t *value) { *value = 0; return 0; }
const char *aclrtGetSocName(void) { return "Ascend910B1"; }
int aclsysGetCANNVersion(int package, char *version) { memset(version, 0, 512); strcpy(version, "8.5.0"); return 0; }
const char *aclGetRecentErrMsg(void) { return "the emulated NPU has no operators of its own"; }

int aclrtMalloc(void **place, size_t size, int policy) { return reserve(place, size); }
int aclrtMallocAlign32(void **place, size_t size, int policy) { return reserve(place, size); }
int aclrtMallocHost(void **place, size_t size) { return reserve(place, size); }
int aclrtMallocHostWithCfg(void **place, size_t size, void *configuration) { return reserve(place, size); }
int aclrtFree(void *place) { free(place); return 0; }
int aclrtFreeHost(void *place) { free(place); return 0; }
/* Addresses first, memory for parts of them later (expandable segments). */
int aclrtReserveMemAddress(void **place, size_t size, size_t alignment, void *expected, uint64_t flags) {
    *place = mmap(0, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return *place == MAP_FAILED ? NO_MEMORY : 0;
}
int aclrtMallocPhysical(void **memory, size_t size, const void *properties, uint64_t flags) { return handle(memory); }
int aclrtMapMem(void *place, size_t size, size_t offset, void *memory, uint64_t flags) {
    return mprotect(place, size, PROT_READ | PROT_WRITE) ? NO_MEMORY : 0;
}
int aclrtFreePhysical(void *memory) { free(memory); return 0; }
int aclrtMemcpy(void *to, size_t most, const void *from, size_t size, int kind) { memmove(to, from, size); return 0; }
int aclrtMemcpyAsync(void *to, size_t most, const void *from, size_t size, int kind, void *stream) {
    memmove(to, from, size);
    return 0;
}
int aclrtMemset(void *place, size_t most, int32_t value, size_t size) { memset(place, value, size); return 0; }
int aclrtMemsetAsync(void *place, size_t most, int32_t value, size_t size, void *stream) {
    memset(place, value, size);
    return 0;
}
int aclrtGetMemInfo(int kind, size_t *free_bytes, size_t *total) {
    *free_bytes = (size_t)60 << 30;
    *total = (size_t)64 << 30;
    return 0;
}
int aclrtPointerGetAttributes(const void *place, void *attributes) { memset(attributes, 0, 16); return 0; }

int aclrtCreateStream(void **stream) { return handle(stream); }
int aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flag) { return handle(stream); }
int aclrtStreamQuery(void *stream, int *status) { *status = 0; return 0; }
int aclrtStreamGetId(void *stream, int32_t *number) { *number = 1; return 0; }
int aclrtCreateEvent(void **event) { return handle(event); }
int aclrtCreateEventWithFlag(void **event, uint32_t flag) { return handle(event); }
int aclrtCreateEventExWithFlag(void **event, uint32_t flag) { return handle(event); }
int aclrtQueryEventStatus(void *event, int *status) { *status = 1; return 0; }
int aclrtQueryEventWaitStatus(void *event, int *status) { *status = 1; return 0; }
int aclrtEventElapsedTime(float *milliseconds, void *start, void *end) { *milliseconds = 0; return 0; }

size_t aclGetCompileoptSize(int option) { return 64; }
int aclGetCompileopt(int option, char *value, size_t size) { strncpy(value, "enable", size); return 0; }
