// Descriptors and what hangs on the process: files with offsets and flags, one
// opened for append, one deleted but open, two descriptors that share one
// offset, pipes with content, devices; working directory, umask, limits,
// priority, affinity, name. Files are made in --dir (default: a new one in /tmp).
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "orders.h"

namespace {

std::string directory;
int plain, append, deleted, shared_a, shared_b, null_fd, zero_fd, random_fd, pipe_a[2], pipe_b[2];
off_t append_size = 0;
constexpr std::size_t kPipeBytes = 30000;
cpu_set_t cpus;

std::string text_of(std::uint64_t seed, std::size_t size) {
  std::string text(size, 0);
  for (std::size_t i = 0; i < size; ++i) text[i] = static_cast<char>(tracee::mix(seed + i));
  return text;
}

void check_bytes(int fd, std::uint64_t seed, std::size_t size) {
  std::string got(size + 1, 0);
  EXPECT_THAT(pread(fd, got.data(), size + 1, 0) == static_cast<ssize_t>(size));
  got.resize(size);
  if (got != text_of(seed, size)) tracee::failed("descriptor %d reads other bytes", fd);
}

// Takes the pipe's content out, compares it and puts it back.
void check_pipe(int (&fds)[2], std::uint64_t seed, int size) {
  EXPECT_THAT(fcntl(fds[0], F_GETPIPE_SZ) == size);
  std::string got(kPipeBytes + 1, 0);
  EXPECT_THAT(read(fds[0], got.data(), got.size()) == static_cast<ssize_t>(kPipeBytes));
  got.resize(kPipeBytes);
  if (got != text_of(seed, kPipeBytes)) tracee::failed("pipe %d holds other bytes", fds[0]);
  EXPECT_THAT(write(fds[1], got.data(), kPipeBytes) == static_cast<ssize_t>(kPipeBytes));
}

void verify() {
  EXPECT_THAT(lseek(plain, 0, SEEK_CUR) == 12345);
  check_bytes(plain, 1, 100000);
  EXPECT_THAT((fcntl(plain, F_GETFL) & (O_ACCMODE | O_APPEND)) == O_RDWR);
  EXPECT_THAT(fcntl(plain, F_GETFD) == FD_CLOEXEC && fcntl(append, F_GETFD) == 0);

  EXPECT_THAT((fcntl(append, F_GETFL) & (O_ACCMODE | O_APPEND)) == (O_WRONLY | O_APPEND));
  EXPECT_THAT(lseek(append, 0, SEEK_SET) == 0 && write(append, "line\n", 5) == 5);
  append_size += 5;
  struct stat info{};
  EXPECT_THAT(fstat(append, &info) == 0);
  if (info.st_size != append_size) tracee::failed("the appended file has %lld bytes, not %lld", static_cast<long long>(info.st_size), static_cast<long long>(append_size));

  EXPECT_THAT(fstat(deleted, &info) == 0 && info.st_nlink == 0 && info.st_size == 50000);
  check_bytes(deleted, 2, 50000);
  EXPECT_THAT(lseek(deleted, 0, SEEK_CUR) == 777);

  EXPECT_THAT(lseek(shared_a, 100, SEEK_SET) == 100);
  EXPECT_THAT(lseek(shared_b, 0, SEEK_CUR) == 100);
  EXPECT_THAT(lseek(shared_b, 4242, SEEK_SET) == 4242);
  EXPECT_THAT(lseek(shared_a, 0, SEEK_CUR) == 4242);

  char bytes[16], zero[16] = {};
  EXPECT_THAT(read(null_fd, bytes, 16) == 0 && write(null_fd, bytes, 16) == 16);
  EXPECT_THAT(read(zero_fd, bytes, 16) == 16 && std::memcmp(bytes, zero, 16) == 0);
  EXPECT_THAT(read(random_fd, bytes, 16) == 16 && std::memcmp(bytes, zero, 16) != 0);
  check_pipe(pipe_a, 3, 65536);
  check_pipe(pipe_b, 4, 131072);

  char path[4096];
  EXPECT_THAT(getcwd(path, sizeof path) != nullptr && directory == path);
  mode_t mask = umask(0);
  umask(mask);
  EXPECT_THAT(mask == 0027);
  rlimit limit{};
  EXPECT_THAT(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == 321 && getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == 0);
  EXPECT_THAT(getpriority(PRIO_PROCESS, 0) == 3);
  char name[16];
  EXPECT_THAT(prctl(PR_GET_NAME, name) == 0 && std::strcmp(name, "a tracee's name") == 0);
  EXPECT_THAT(prctl(PR_GET_DUMPABLE) == 1);
  cpu_set_t now;
  EXPECT_THAT(sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &cpus));
}

int make(const char* name, int flags, std::uint64_t seed, std::size_t size) {
  int fd = open(name, flags | O_CREAT | O_TRUNC, 0640);
  EXPECT_THAT(fd >= 0);
  std::string text = text_of(seed, size);
  EXPECT_THAT(write(fd, text.data(), size) == static_cast<ssize_t>(size));
  return fd;
}

}  // namespace

int main(int argc, char** argv) {
  tracee::start(argc, argv);
  char made[] = "/tmp/tracee-files-XXXXXX";
  directory = tracee::option("dir", "");
  if (directory.empty()) {
    EXPECT_THAT(mkdtemp(made) != nullptr);
    directory = made;
  }
  EXPECT_THAT(chdir(directory.c_str()) == 0);
  umask(0027);
  plain = make("plain", O_RDWR | O_CLOEXEC, 1, 100000);
  EXPECT_THAT(lseek(plain, 12345, SEEK_SET) == 12345);
  append = make("append", O_WRONLY | O_APPEND, 5, 0);
  deleted = make("deleted", O_RDWR, 2, 50000);
  EXPECT_THAT(lseek(deleted, 777, SEEK_SET) == 777 && unlink("deleted") == 0);
  shared_a = make("shared", O_RDWR, 6, 9000);
  shared_b = dup(shared_a);
  null_fd = open("/dev/null", O_RDWR);
  zero_fd = open("/dev/zero", O_RDONLY);
  random_fd = open("/dev/urandom", O_RDONLY);
  EXPECT_THAT(shared_b >= 0 && null_fd >= 0 && zero_fd >= 0 && random_fd >= 0);
  EXPECT_THAT(pipe2(pipe_a, O_NONBLOCK) == 0 && pipe2(pipe_b, O_NONBLOCK | O_CLOEXEC) == 0);
  EXPECT_THAT(fcntl(pipe_b[1], F_SETPIPE_SZ, 131072) == 131072);
  std::string text = text_of(3, kPipeBytes);
  EXPECT_THAT(write(pipe_a[1], text.data(), kPipeBytes) == static_cast<ssize_t>(kPipeBytes));
  text = text_of(4, kPipeBytes);
  EXPECT_THAT(write(pipe_b[1], text.data(), kPipeBytes) == static_cast<ssize_t>(kPipeBytes));
  rlimit limit{321, 321};
  EXPECT_THAT(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  limit = {0, 0};
  EXPECT_THAT(setrlimit(RLIMIT_CORE, &limit) == 0);
  EXPECT_THAT(setpriority(PRIO_PROCESS, 0, 3) == 0 && prctl(PR_SET_NAME, "a tracee's name") == 0);
  CPU_ZERO(&cpus);
  EXPECT_THAT(sched_getaffinity(0, sizeof cpus, &cpus) == 0);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &cpus)) {      // only the first of those it may use
      CPU_ZERO(&cpus);
      CPU_SET(cpu, &cpus);
      break;
    }
  }
  EXPECT_THAT(sched_setaffinity(0, sizeof cpus, &cpus) == 0);
  verify();
  tracee::ready();
  tracee::serve(verify);
}
