#include "base/error.h"

#include <cerrno>
#include <cstring>

namespace baton {

std::string_view code_name(Code code) {
  switch (code) {
    case Code::kFailed: return "failed";
    case Code::kInvalid: return "invalid";
    case Code::kNotFound: return "not_found";
    case Code::kUnreachable: return "unreachable";
    case Code::kNotAllowed: return "not_allowed";
    case Code::kTimedOut: return "timed_out";
    case Code::kConflict: return "conflict";
    case Code::kUnsupported: return "unsupported";
    case Code::kNoSpace: return "no_space";
    case Code::kCorrupt: return "corrupt";
    case Code::kTraceeGone: return "tracee_gone";
    case Code::kUnknownOutcome: return "unknown_outcome";
    case Code::kCancelled: return "cancelled";
  }
  return "failed";
}

std::string Error::message() const {
  std::string out = operation;
  if (!subject.empty()) {
    if (!out.empty()) out += ' ';
    out += subject;
  }
  if (sys_errno != 0) {
    char buffer[128];
    out += ": ";
    out += strerror_r(sys_errno, buffer, sizeof buffer);
    if (const char* name = strerrorname_np(sys_errno)) {
      out += " (";
      out += name;
      out += ')';
    }
  }
  if (!hint.empty()) {
    if (out.empty() || (out.back() != '.' && out.back() != '!' && out.back() != '?')) out += '.';
    out += ' ';
    out += hint;
  }
  return out;
}

Error errno_error(int saved_errno, std::string_view operation, std::string subject) {
  Code code = Code::kFailed;
  switch (saved_errno) {
    case ESRCH: code = Code::kTraceeGone; break;
    case ENOENT: code = Code::kNotFound; break;
    case ENOSPC:
    case EDQUOT: code = Code::kNoSpace; break;
    case EPERM:
    case EACCES: code = Code::kNotAllowed; break;
    case ETIMEDOUT: code = Code::kTimedOut; break;
    default: break;
  }
  return Error{code, saved_errno, std::string(operation), std::move(subject), {}};
}

Error errno_error(std::string_view operation, std::string subject) {
  return errno_error(errno, operation, std::move(subject));
}

}  // namespace baton
