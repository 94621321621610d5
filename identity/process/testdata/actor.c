// SPDX-License-Identifier: Apache-2.0
//
// A workload that does what it is told, one command a line on its standard
// input, and says on its standard output when it is done. It makes system calls
// itself where the C library would apply them to all threads.
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int connection = -1;
static char *program;
static char stack[1 << 16] __attribute__((aligned(16)));

static void fail(const char *doing) {
	dprintf(1, "failed %s: %s\n", doing, strerror(errno));
	_exit(1);
}

// line reads one line without buffering, so that the next program finds the rest.
static int line(char *into, size_t size) {
	size_t n = 0;
	char c;
	while (read(0, &c, 1) == 1) {
		if (c == '\n') {
			into[n] = 0;
			return 1;
		}
		if (n + 1 < size)
			into[n++] = c;
	}
	return 0;
}

static void wait_forever(void) {
	for (;;)
		pause();
}

static void *thread(void *fsuid) {
	if (fsuid)
		syscall(SYS_setfsuid, atoi(fsuid));
	dprintf(1, "thread %ld\n", syscall(SYS_gettid));
	wait_forever();
	return NULL;
}

// borrower runs in the memory of its parent, as between vfork and exec.
static int borrower(void *unused) {
	char command[16];
	(void)unused;
	dprintf(1, "borrower %d\n", getpid());
	if (!line(command, sizeof command))
		_exit(1);
	execl(program, program, "idle", NULL);
	_exit(1);
}

static void dial(const char *path) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	connection = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(connection, (void *)&address, sizeof address))
		fail("connect");
	if (write(connection, "request\n", 8) != 8)
		fail("write");
}

// hand connects, and passes the connection to a child that did not inherit it.
static void hand(const char *path) {
	int pair[2];
	char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 'x';
	struct iovec data = {&byte, 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		fail("socketpair");
	pid_t child = fork();
	if (child == 0) {
		if (recvmsg(pair[1], &message, 0) != 1)
			fail("recvmsg");
		int got = *(int *)CMSG_DATA(CMSG_FIRSTHDR(&message));
		if (write(got, "handed\n", 7) != 7)
			fail("write");
		dprintf(1, "handed %d\n", getpid());
		wait_forever();
	}
	dial(path);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	*(int *)CMSG_DATA(header) = connection;
	if (sendmsg(pair[0], &message, 0) != 1)
		fail("sendmsg");
}

// leave ends this process, and leaves its connection to a child. The child
// leaves the group, so that nothing holds this process's number.
static void leave(void) {
	pid_t child = fork();
	if (child == 0) {
		if (setpgid(0, 0))
			fail("setpgid");
		if (write(connection, "inherited\n", 10) != 10)
			fail("write");
		dprintf(1, "heir %d\n", getpid());
		wait_forever();
	}
	_exit(0);
}

// as makes a child with the given process id.
static void as(pid_t wanted) {
	struct clone_args arguments = {.exit_signal = SIGCHLD, .set_tid = (unsigned long)&wanted, .set_tid_size = 1};
	long child = syscall(SYS_clone3, &arguments, sizeof arguments);
	if (child == 0)
		wait_forever();
	if (child < 0)
		fail("clone3");
	dprintf(1, "child %ld\n", child);
}

static void obey(const char *command, char *word) {
	pthread_t made;
	pid_t child;
	char *arguments[] = {word, "idle", NULL};
	if (!strcmp(command, "thread")) {
		char *fsuid = word ? strdup(word) : NULL; // outlives this line
		if (pthread_create(&made, NULL, thread, fsuid))
			fail("pthread_create");
	} else if (!strcmp(command, "fsuid")) {
		syscall(SYS_setfsuid, atoi(word));
		dprintf(1, "done\n");
	} else if (!strcmp(command, "fsgid")) {
		syscall(SYS_setfsgid, atoi(word));
		dprintf(1, "done\n");
	} else if (!strcmp(command, "euid")) {
		if (syscall(SYS_setresuid, -1, atoi(word), -1))
			fail("setresuid");
		dprintf(1, "done\n");
	} else if (!strcmp(command, "uid")) {
		if (syscall(SYS_setresuid, atoi(word), atoi(word), atoi(word)))
			fail("setresuid");
		dprintf(1, "done\n");
	} else if (!strcmp(command, "group")) {
		gid_t group = atoi(word);
		if (setgroups(1, &group))
			fail("setgroups");
		dprintf(1, "done\n");
	} else if (!strcmp(command, "exec")) {
		execl(word, word, NULL);
		fail("exec");
	} else if (!strcmp(command, "vfork")) {
		program = word;
		if (clone(borrower, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL) < 0)
			fail("clone");
	} else if (!strcmp(command, "spawn")) {
		if (posix_spawn(&child, word, NULL, NULL, arguments, NULL))
			fail("posix_spawn");
	} else if (!strcmp(command, "as")) {
		as(atoi(word));
	} else if (!strcmp(command, "connect")) {
		dial(word);
		dprintf(1, "done\n");
	} else if (!strcmp(command, "hand")) {
		hand(word);
	} else if (!strcmp(command, "leave")) {
		leave();
	} else {
		fail("understanding");
	}
}

int main(int count, char **arguments) {
	char command[4096];
	dprintf(1, "ready %d\n", getpid());
	if (count > 1 && !strcmp(arguments[1], "idle"))
		wait_forever();
	while (line(command, sizeof command)) {
		char *space = strchr(command, ' ');
		if (space)
			*space++ = 0;
		obey(command, space);
	}
	return 0;
}
