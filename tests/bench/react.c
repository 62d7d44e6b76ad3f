/* Touches memory at full speed and leaves on record when it touched which page.
 *
 *   react PROCESSES BYTES RECORD
 *
 * BYTES are of all processes together. RECORD is a file of PROCESSES parts of BYTES / PROCESSES / 4096 + 2 numbers of 64
 * bits each: the pid, how many pages were touched, and the moment before each (CLOCK_MONOTONIC, ns). Whoever reads the
 * record made it and touched all of it, so that it is on that one's account. Prints the id of its call and waits for a
 * line. Keeps what it touched until a signal ends it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static void touch(char *memory, size_t pages, volatile uint64_t *record)
{
	struct timespec t;

	for (size_t at = 0; at < pages; at++) {
		clock_gettime(CLOCK_MONOTONIC, &t);
		record[2 + at] = (uint64_t)t.tv_sec * 1000000000UL + (uint64_t)t.tv_nsec;
		record[1] = at + 1;
		*(volatile char *)(memory + at * PAGE) = 1;
	}
}

int main(int argc, char **argv)
{
	int processes = argc == 4 ? atoi(argv[1]) : 0, fd, gate[2];
	size_t bytes = argc == 4 ? strtoull(argv[2], NULL, 10) : 0, pages, part;
	const char *call = getenv("CORRAL_CALL");
	pid_t first = getpid();
	uint64_t *record;
	char line[8], *memory;

	if (processes < 1 || bytes < PAGE * (size_t)processes) {
		fprintf(stderr, "usage: react PROCESSES BYTES RECORD\n");
		return 2;
	}
	pages = bytes / (size_t)processes / PAGE;
	part = pages + 2;
	fd = open(argv[3], O_RDWR);
	if (fd < 0) {
		perror("react: record");
		return 3;
	}
	record = mmap(NULL, (size_t)processes * part * 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (record == MAP_FAILED || pipe(gate)) {
		perror("react: record");
		return 3;
	}
	for (int i = 1; i < processes; i++) {
		pid_t pid = fork();

		if (pid < 0) {
			perror("react: fork");
			return 3;
		}
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() != first) /* it ended before we asked to go with it */
				_exit(3);
			record += (size_t)i * part;
			break;
		}
	}
	record[0] = (uint64_t)getpid();
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || madvise(memory, pages * PAGE, MADV_NOHUGEPAGE)) {
		perror("react: memory");
		return 3;
	}
	if (getpid() == first) {
		printf("%s\n", call ? call : "");
		fflush(stdout);
		if (read(STDIN_FILENO, line, sizeof line) <= 0)
			return 3;
		close(gate[1]); /* the end of the pipe is the start of all */
	} else {
		close(gate[1]);
		if (read(gate[0], line, 1) != 0)
			return 3;
	}
	touch(memory, pages, record);
	for (;;)
		pause();
}
