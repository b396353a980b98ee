// expect: RUNTIME_ERROR
// new namespaces and mounts
#include <cstdio>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>
int main() {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 || mount("none", "/", "tmpfs", 0, "") == 0) return puts("42"), 0;
    if (umount("/usr/lib") == 0 || chroot("/") == 0) return puts("42"), 0;
    return 1;
}
