#include <gtest/gtest.h>
#include <grpcpp/support/status.h>

#include "transport/rpc.h"

namespace baton::transport {
namespace {

TEST(RpcStatus, ToAndFrom_OfEveryCode_KeepsAllFields) {
  for (int code = static_cast<int>(Code::kFailed); code <= static_cast<int>(Code::kCancelled); ++code) {
    Error error{static_cast<Code>(code), 28, "write", "ünïcode /x: index", "Make room."};
    const Error back = from_status(to_status(error), "call", "ecu1");
    EXPECT_EQ(back.code, error.code);
    EXPECT_EQ(back.sys_errno, 28);
    EXPECT_EQ(back.operation, error.operation);
    EXPECT_EQ(back.subject, error.subject);
    EXPECT_EQ(back.hint, error.hint);
  }
}

TEST(RpcStatus, From_GrpcsOwn_NamesPeerAndOutcome) {
  using grpc::StatusCode;
  auto code_of = [](StatusCode code, const char* text) {
    return from_status(grpc::Status(code, text), "call", "ecu1").code;
  };
  EXPECT_EQ(code_of(StatusCode::UNAVAILABLE, "failed to connect to all addresses; last error: UNKNOWN"),
            Code::kUnreachable);
  EXPECT_EQ(code_of(StatusCode::UNAVAILABLE, "Socket closed"), Code::kUnknownOutcome);
  EXPECT_EQ(code_of(StatusCode::UNAVAILABLE, "x [baton peer] expected node a, but node b answers there"),
            Code::kNotAllowed);
  EXPECT_EQ(code_of(StatusCode::DEADLINE_EXCEEDED, "Deadline Exceeded"), Code::kTimedOut);
  EXPECT_EQ(code_of(StatusCode::UNIMPLEMENTED, ""), Code::kUnsupported);
  const Error lost = from_status(grpc::Status(StatusCode::UNAVAILABLE, "Socket closed"), "Migrate", "ecu1");
  EXPECT_NE(lost.message().find("ecu1"), std::string::npos);
}

TEST(RpcStatus, From_GarbageDetails_FallsBackToTheStatus) {
  EXPECT_EQ(from_status(grpc::Status(grpc::StatusCode::NOT_FOUND, "x", "BTNE\xff\xff\xff"), "c", "p").code,
            Code::kNotFound);
  EXPECT_EQ(from_status(grpc::Status(grpc::StatusCode::NOT_FOUND, "x", "BTNE\x08\x7f"), "c", "p").code,
            Code::kNotFound);
}

TEST(RpcStatus, To_OfHugeError_IsClipped) {
  const grpc::Status status = to_status(make_error(Code::kFailed, "x", std::string(1 << 20, 'y')));
  EXPECT_LT(status.error_details().size() + status.error_message().size(), 8000u);
  EXPECT_EQ(from_status(status, "c", "p").code, Code::kFailed);
}

}  // namespace
}  // namespace baton::transport
