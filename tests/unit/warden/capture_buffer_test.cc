#include "agent/warden/capture_buffer.h"

#include <cstring>

#include <gtest/gtest.h>

namespace baton::warden {
namespace {

using Runs = google::protobuf::RepeatedPtrField<pb::PageRun>;
using Ranges = google::protobuf::RepeatedPtrField<pb::PageRange>;
constexpr std::size_t kPage = 4096;

class CaptureBufferTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto made = CaptureBuffer::make(4 * kSegmentBytes);
    ASSERT_TRUE(made);
    buffer = std::move(*made);
  }
  static bool put(CaptureSink& sink, std::uint64_t object, std::uint64_t page) {
    auto room = sink.reserve(kPage);
    if (room.empty()) return false;
    std::memcpy(room.data(), &page, sizeof page);
    sink.emit(object, page, 1);
    return true;
  }
  std::unique_ptr<CaptureBuffer> buffer;
};

TEST_F(CaptureBufferTest, Sink_NeighbouringPages_BecomeOneRun) {
  CaptureSink sink(*buffer);
  for (std::uint64_t page = 10; page < 20; ++page) ASSERT_TRUE(put(sink, 1, page));
  Runs runs;
  Ranges dropped;
  sink.take(&runs, &dropped);
  ASSERT_EQ(runs.size(), 1);
  EXPECT_EQ(runs[0].first_page(), 10u);
  EXPECT_EQ(runs[0].count(), 10u);
  buffer->give(runs);
  EXPECT_TRUE(buffer->free_runs(runs));
  EXPECT_EQ(buffer->pages_used(), 0u);
}

TEST_F(CaptureBufferTest, Sink_DropAfterPages_CutsThem) {
  CaptureSink sink(*buffer);
  for (std::uint64_t page = 0; page < 10; ++page) ASSERT_TRUE(put(sink, 1, page));
  sink.drop(1, 3, 4);
  ASSERT_TRUE(put(sink, 1, 5));   // there again
  Runs runs;
  Ranges dropped;
  sink.take(&runs, &dropped);
  ASSERT_EQ(dropped.size(), 1);
  ASSERT_EQ(runs.size(), 3);
  EXPECT_EQ(runs[0].count(), 3u);
  EXPECT_EQ(runs[1].first_page(), 5u);
  EXPECT_EQ(runs[2].first_page(), 7u);
  EXPECT_EQ(runs[2].count(), 3u);
  EXPECT_EQ(buffer->pages_used(), 7u);
  buffer->take_back(runs);
  EXPECT_EQ(buffer->pages_used(), 0u);
}

TEST_F(CaptureBufferTest, Sink_SamePageTwice_TheLaterOneCounts) {
  CaptureSink sink(*buffer);
  for (std::uint64_t page : {1, 2, 3, 2}) ASSERT_TRUE(put(sink, 7, page));
  Runs runs;
  Ranges dropped;
  sink.take(&runs, &dropped);
  std::uint64_t pages = 0;
  for (const auto& run : runs) {
    pages += run.count();
    if (run.first_page() == 2) {
      EXPECT_EQ(run.offset() % kSegmentBytes, 3 * kPage);
    }
  }
  EXPECT_EQ(pages, 3u);
  buffer->take_back(runs);
}

TEST_F(CaptureBufferTest, Buffer_Full_ReserveIsEmptyUntilFreed) {
  CaptureSink sink(*buffer);
  std::uint64_t page = 0;
  while (put(sink, 1, page)) ++page;
  EXPECT_EQ(page, 4 * kSegmentBytes / kPage);
  EXPECT_EQ(sink.free_bytes(), 0u);
  Runs runs;
  Ranges dropped;
  sink.take(&runs, &dropped);
  buffer->give(runs);
  ASSERT_TRUE(buffer->free_runs(runs));
  EXPECT_TRUE(put(sink, 1, 0));
}

TEST_F(CaptureBufferTest, Sink_LimitAndAbort_EndTheRoom) {
  CaptureSink sink(*buffer);
  sink.begin(3 * kPage);
  EXPECT_EQ(sink.free_bytes(), 3 * kPage);
  for (std::uint64_t page = 0; page < 3; ++page) EXPECT_TRUE(put(sink, 1, page));
  EXPECT_FALSE(put(sink, 1, 3));
  sink.begin(0);
  EXPECT_TRUE(put(sink, 1, 3));
  sink.abort();
  EXPECT_FALSE(put(sink, 1, 4));
  EXPECT_EQ(sink.free_bytes(), 0u);
}

TEST_F(CaptureBufferTest, FreeRuns_NotGivenOrTwice_Refused) {
  CaptureSink sink(*buffer);
  ASSERT_TRUE(put(sink, 1, 0));
  Runs runs;
  Ranges dropped;
  sink.take(&runs, &dropped);
  EXPECT_FALSE(buffer->free_runs(runs));   // taken, not given
  buffer->give(runs);
  EXPECT_TRUE(buffer->free_runs(runs));
  EXPECT_FALSE(buffer->free_runs(runs));
  for (auto [offset, count] : {std::pair<std::uint64_t, std::uint32_t>{1, 1}, {0, 0}, {0, UINT32_MAX}, {UINT64_MAX - 4095, 1}}) {
    Runs bad;
    bad.Add()->set_offset(offset);
    bad[0].set_count(count);
    EXPECT_FALSE(buffer->free_runs(bad));
  }
}

TEST_F(CaptureBufferTest, FreeAllGiven_AgentGone_LeavesWhatASinkHolds) {
  CaptureSink sink(*buffer), other(*buffer);
  ASSERT_TRUE(put(sink, 1, 0));
  ASSERT_TRUE(put(other, 1, 1));
  Runs runs;
  Ranges dropped;
  sink.take(&runs, &dropped);
  buffer->give(runs);
  buffer->free_all_given();
  EXPECT_EQ(buffer->pages_used(), 1u);
}

}  // namespace
}  // namespace baton::warden
