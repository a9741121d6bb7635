/* What llama.cpp logs, kept for the thread that it logs in. Nothing here knows Python: a callback in Python would run
 * signal handlers in the middle of llama.cpp's call, and what they raise there is lost. */
#ifndef GGEXT_LOG_H
#define GGEXT_LOG_H

#include <stddef.h>

/* Bytes that a thread keeps at most; at more it forgets what it has, and goes on. */
enum { GGEXT_LOG_BYTES = 1 << 18 };

/* llama.cpp's log callback, a ggml_log_callback: keeps the text, unless its level is that of a debugger's. The levels
 * are ggml.h's, 0 to 5. Without memory the text is dropped. */
void ggext_log_add(int level, const char *text, void *unused);

/* What the calling thread logged since the last call: texts, each after its level as a digit and before a NUL. Returns
 * memory that the caller frees, of *size bytes, or NULL where there is nothing. */
char *ggext_log_take(size_t *size);

#endif
