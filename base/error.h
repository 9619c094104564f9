// Errors as values: Error, Result<T>, and the closed list of codes.
//
// A code exists only where some caller acts on it. kUnknownOutcome differs from
// kFailed: the operation may have taken effect, and the caller must ask again
// before it tries anything else.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <tl/expected.hpp>

namespace baton {

enum class Code {
  kFailed = 1,         // the operation failed and had no effect
  kInvalid,            // the request itself is wrong (bad argument, bad spec): exit code 2
  kNotFound,           // no such workload, node, checkpoint, process: exit code 3
  kUnreachable,        // the peer cannot be reached: exit code 4 for the coordinator
  kNotAllowed,         // authenticated, but not allowed: exit code 5
  kTimedOut,           // exit code 6
  kConflict,           // the name is taken, the state changed underneath, an older incarnation
  kUnsupported,        // a resource or feature that Baton or this node cannot handle
  kNoSpace,            // disk, memory budget or buffer exhausted
  kCorrupt,            // bytes fail their check
  kTraceeGone,         // the process died or was killed under us
  kUnknownOutcome,     // may or may not have happened
  kCancelled,          // the caller asked to stop
};

std::string_view code_name(Code code);

struct Error {
  Code code = Code::kFailed;
  int sys_errno = 0;         // 0: not from a system call
  std::string operation;     // what failed: "open", "capture", "PAGEMAP_SCAN"
  std::string subject;       // on what, and why: "/var/lib/baton/x: index truncated"
  std::string hint;          // what to do next; may be empty

  // One line for a person: "open /x: Permission denied (EACCES). Run as root."
  std::string message() const;
};

// The error of the system call that just failed; reads errno first.
// ESRCH maps to kTraceeGone, ENOENT to kNotFound, ENOSPC and EDQUOT to kNoSpace,
// EPERM and EACCES to kNotAllowed, ETIMEDOUT to kTimedOut, else kFailed.
Error errno_error(std::string_view operation, std::string subject);
Error errno_error(int saved_errno, std::string_view operation, std::string subject);

template <typename T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using Base = tl::expected<T, Error>;
  using Base::Base;
  Result(Error error) : Base(tl::unexpect, std::move(error)) {}  // NOLINT: implicit by design
};

template <>
class [[nodiscard]] Result<void> : public tl::expected<void, Error> {
 public:
  using Base = tl::expected<void, Error>;
  using Base::Base;
  Result(Error error) : Base(tl::unexpect, std::move(error)) {}  // NOLINT: implicit by design
};

inline Error make_error(Code code, std::string_view operation, std::string subject,
                        std::string hint = {}) {
  return Error{code, 0, std::string(operation), std::move(subject), std::move(hint)};
}

#define BATON_CONCAT_(a, b) a##b
#define BATON_CONCAT(a, b) BATON_CONCAT_(a, b)

// Returns the error of `expr` from the calling function, if it has one.
#define BATON_TRY(expr)                                   \
  do {                                                    \
    auto baton_try_ = (expr);                             \
    if (!baton_try_) return std::move(baton_try_).error(); \
  } while (0)

// `BATON_ASSIGN(auto x, f());` declares x with the value, or returns the error.
#define BATON_ASSIGN(lhs, expr) BATON_ASSIGN_(BATON_CONCAT(baton_assign_, __LINE__), lhs, expr)
#define BATON_ASSIGN_(tmp, lhs, expr)           \
  auto tmp = (expr);                            \
  if (!tmp) return std::move(tmp).error();      \
  lhs = std::move(*tmp)

}  // namespace baton
