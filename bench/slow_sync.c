/* Preloaded into a process (LD_PRELOAD): fsync and fdatasync wait first, as long as the file $SLOW_SYNC says, in
 * microseconds. So one running service has a quick and a slow disk in turn. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static void delay(void) {
    const char *path = getenv("SLOW_SYNC");
    FILE *file = path ? fopen(path, "re") : NULL;
    unsigned microseconds = 0;
    if (!file) return;
    if (fscanf(file, "%u", &microseconds) == 1 && microseconds) usleep(microseconds);
    fclose(file);
}

int fsync(int descriptor) {
    delay();
    return (int)syscall(SYS_fsync, descriptor);
}

int fdatasync(int descriptor) {
    delay();
    return (int)syscall(SYS_fdatasync, descriptor);
}
