/* What the caller's program is told, for it to read and not to guess from stderr: one JSON object on a descriptor or in a file
 * of its choice (--outcome-fd, --outcome-file), written once, when it is known how the call went. docs/integrations.md has
 * its keys. Without either option nothing here costs anything. */
#ifndef CORRAL_TELL_H
#define CORRAL_TELL_H

#include "wire.h"

/* At most one of the two: `fd` -1 and `file` NULL mean that nobody asked. `fd` is made CLOEXEC: a tool must neither write
 * to it nor keep it open. 0, or -1 with errno when `fd` is no open descriptor. */
int tell_to(int fd, const char *file);
int tell_wanted(void);

/* The call ended with `status` (as of waitpid). `outcome`: the daemon's OUTCOME, or NULL when it did not come in time. */
void tell_ended(const char *call, int status, const struct wire_in *outcome);
/* The command ran without a daemon, as --fail open asks. */
void tell_uncontrolled(int status);
/* The daemon refused the call: the command did not run. */
void tell_refused(const struct wire_field *code, const struct wire_field *message);
/* corral-exec could not do its work; `state` "no_daemon" or "failed", `words` what it said on stderr. */
void tell_failed(const char *state, const char *words);

#endif
