#include "base/error.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace baton {
namespace {

TEST(Error, Message_OfSystemCall_NamesOperationSubjectErrnoAndHint) {
  Error error = errno_error(EACCES, "open", "/x");
  error.hint = "Run as root.";
  EXPECT_EQ(error.code, Code::kNotAllowed);
  EXPECT_EQ(error.message(), "open /x: Permission denied (EACCES). Run as root.");
}

Result<int> half(int x) {
  if (x % 2) return make_error(Code::kInvalid, "half", std::to_string(x));
  return x / 2;
}
Result<int> quarter(int x) {
  BATON_ASSIGN(int h, half(x));
  BATON_TRY(half(h));
  return h / 2;
}

TEST(Result, AssignAndTry_OnError_ReturnItUnchanged) {
  EXPECT_EQ(*quarter(8), 2);
  EXPECT_EQ(quarter(6).error().subject, "3");
  EXPECT_EQ(quarter(5).error().subject, "5");
}

}  // namespace
}  // namespace baton
