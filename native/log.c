#include "log.h"

#include <stdlib.h>
#include <string.h>

enum { DEBUG = 1, FIRST_BYTES = 1 << 10 }; /* the level GGML_LOG_LEVEL_DEBUG: a line for each tensor of a model */

static _Thread_local char *kept;
static _Thread_local size_t used, room;

/* Makes room for so many bytes more; returns 0, or -1 without memory. */
static int make_room(size_t nbytes)
{
    size_t wanted = room ? room : FIRST_BYTES;
    while (wanted - used < nbytes) {
        wanted *= 2;
    }
    if (wanted == room) {
        return 0;
    }
    char *larger = realloc(kept, wanted);
    if (!larger) {
        return -1;
    }
    kept = larger;
    room = wanted;
    return 0;
}

void ggext_log_add(int level, const char *text, void *unused)
{
    (void)unused;
    if (level == DEBUG || level < 0 || level > 9 || !text) {
        return;
    }
    size_t nbytes = strlen(text) + 2;
    if (nbytes > GGEXT_LOG_BYTES) {
        return;
    }
    if (used + nbytes > GGEXT_LOG_BYTES) {
        used = 0;
    }
    if (make_room(nbytes)) {
        return;
    }
    kept[used] = (char)('0' + level);
    memcpy(kept + used + 1, text, nbytes - 1);
    used += nbytes;
}

char *ggext_log_take(size_t *size)
{
    char *taken = used ? kept : NULL;
    *size = used;
    if (taken) {
        kept = NULL;
        used = room = 0;
    }
    return taken;
}
