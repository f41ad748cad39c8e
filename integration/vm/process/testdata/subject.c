// SPDX-License-Identifier: Apache-2.0
//
// The program that the suite does things to: it runs from an image, maps files
// of one, and waits while somebody looks at it. What it has done it says on
// standard output, a line each; it ends when standard input does.
//
//	subject spin                 call work(n) for n = 1, 2, ..., and print n
//	subject map FILE shared|private [write]
//	                             map FILE, touch every page; print the address
//	subject fork FILE            map FILE shared, private, and private with
//	                             MADV_DONTFORK, touch all pages, fork; the child
//	                             writes to the second private page
//	subject crash FILE           map FILE shared, private, and private with its
//	                             first byte written, and die of SIGABRT
//	subject ids                  print uid, euid, gid, egid and effective
//	                             capabilities
//	subject #! ARGUMENT FILE     as an interpreter: print ARGUMENT and FILE
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "part.h"

static long page;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

// map maps the whole of the file and reads a byte of each page.
static unsigned char *map(const char *path, int prot, int flags, size_t *len)
{
	volatile unsigned char sink;
	struct stat st;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || fstat(fd, &st))
		die(path);
	unsigned char *p = mmap(NULL, st.st_size, prot, flags, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	close(fd);
	for (off_t i = 0; i < st.st_size; i += page)
		sink = p[i];
	(void)sink;
	*len = st.st_size;
	return p;
}

static void wait_for_end(void)
{
	char line[256];

	while (fgets(line, sizeof(line), stdin))
		;
}

__attribute__((noinline)) int work(int n)
{
	return part(n) + 1;
}

static void nap(void)
{
	struct timespec ts = { .tv_nsec = 20 * 1000 * 1000 };

	nanosleep(&ts, NULL);
}

static void spin(void)
{
	for (int n = 1;; n++) {
		work(n);
		printf("%d\n", n);
		nap();
	}
}

static void do_fork(const char *path)
{
	size_t len;
	unsigned char *shared = map(path, PROT_READ, MAP_SHARED, &len);
	unsigned char *private = map(path, PROT_READ | PROT_WRITE, MAP_PRIVATE, &len);
	unsigned char *alone = map(path, PROT_READ, MAP_PRIVATE, &len);

	if (madvise(alone, len, MADV_DONTFORK))
		die("madvise");
	pid_t child = fork();
	if (child < 0)
		die("fork");
	if (child == 0) {
		private[page] = 0xee;
		printf("%d %p %p %p\n", getpid(), shared, private, alone);
		for (;;)
			pause();
	}
	wait_for_end();
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void crash(const char *path)
{
	size_t len;
	unsigned char *shared = map(path, PROT_READ, MAP_SHARED, &len);
	unsigned char *private = map(path, PROT_READ, MAP_PRIVATE, &len);
	unsigned char *written = map(path, PROT_READ | PROT_WRITE, MAP_PRIVATE, &len);

	written[0] = 0xee;
	printf("%p %p %p\n", shared, private, written);
	abort();
}

static void ids(void)
{
	char line[256];
	FILE *f = fopen("/proc/self/status", "r");

	if (!f)
		die("/proc/self/status");
	printf("%d %d %d %d ", getuid(), geteuid(), getgid(), getegid());
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, "CapEff:\t", 8))
			fputs(line + 8, stdout);
	fclose(f);
}

int main(int argc, char **argv)
{
	const char *verb = argc > 1 ? argv[1] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	page = sysconf(_SC_PAGESIZE);
	if (!strcmp(verb, "spin") && argc == 2) {
		spin();
	} else if (!strcmp(verb, "map") && argc >= 4) {
		size_t len;
		int write = argc == 5 && !strcmp(argv[4], "write");
		unsigned char *p = map(argv[2], PROT_READ | (write ? PROT_WRITE : 0),
				       strcmp(argv[3], "shared") ? MAP_PRIVATE : MAP_SHARED, &len);
		if (write)
			for (size_t i = 0; i < len; i += page)
				p[i] = 0xee;
		printf("%p\n", p);
		wait_for_end();
	} else if (!strcmp(verb, "fork") && argc == 3) {
		do_fork(argv[2]);
	} else if (!strcmp(verb, "crash") && argc == 3) {
		crash(argv[2]);
	} else if (!strcmp(verb, "ids") && argc == 2) {
		ids();
	} else if (!strcmp(verb, "#!") && argc == 3) {
		// The kernel gives what follows the interpreter as one argument.
		printf("%s %s\n", argv[1], argv[2]);
	} else {
		fprintf(stderr, "subject: bad arguments\n");
		return 2;
	}
	return 0;
}
