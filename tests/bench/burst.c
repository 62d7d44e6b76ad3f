/* Touches memory at full speed.
 *
 *   burst PROCESSES BYTES small|huge
 *
 * BYTES are of all processes together. Prints the id of its call and waits for a line, then every process touches its
 * share: each 4 KiB page, or each 2 MiB page where the kernel gives such (MADV_HUGEPAGE), and keeps it until all have
 * touched theirs. Exit status 0: all was touched, so nothing stopped it.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#define HUGE_PAGE (2UL << 20)
#define SMALL_PAGE 4096UL

static void touch(size_t bytes, int huge)
{
	size_t step = huge ? HUGE_PAGE : SMALL_PAGE;
	char *memory = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED || madvise(memory, bytes + HUGE_PAGE, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE)) {
		perror("burst: memory");
		_exit(3);
	}
	memory = (char *)(((uintptr_t)memory + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	for (size_t at = 0; at < bytes; at += step)
		*(volatile char *)(memory + at) = 1;
}

int main(int argc, char **argv)
{
	int processes = argc == 4 ? atoi(argv[1]) : 0, huge = argc == 4 && strcmp(argv[3], "huge") == 0;
	size_t bytes = argc == 4 ? strtoull(argv[2], NULL, 10) : 0;
	const char *call = getenv("CORRAL_CALL");
	int gate[2], touched[2];
	pid_t first = getpid();
	char line[8];

	if (processes < 1 || !bytes) {
		fprintf(stderr, "usage: burst PROCESSES BYTES small|huge\n");
		return 2;
	}
	if (pipe(gate) || pipe(touched)) {
		perror("burst: pipe");
		return 3;
	}
	for (int i = 1; i < processes; i++) {
		pid_t pid = fork();

		if (pid < 0) {
			perror("burst: fork");
			return 3;
		}
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (getppid() != first) /* it ended before we asked to go with it */
				_exit(3);
			close(gate[1]);
			/* the end of the pipe is the start of all */
			if (read(gate[0], line, 1) != 0)
				_exit(3);
			touch(bytes / (size_t)processes, huge);
			if (write(touched[1], "", 1) != 1)
				_exit(3);
			for (;;)
				pause(); /* the first process takes all with it */
		}
	}
	printf("%s\n", call ? call : "");
	fflush(stdout);
	if (read(STDIN_FILENO, line, sizeof line) <= 0)
		return 3;
	close(gate[1]);
	touch(bytes / (size_t)processes, huge);
	close(touched[1]); /* children that failed leave an end of the pipe, not a wait without end */
	for (int i = 1; i < processes; i++)
		if (read(touched[0], line, 1) != 1)
			return 3;
	return 0;
}
