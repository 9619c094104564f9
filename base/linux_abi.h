// Kernel facts that Debian 12's headers (6.1) lack, each with the kernel that brought it.
// Source: include/uapi/linux/fs.h and userfaultfd.h of Linux 6.12.
#pragma once

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#include <cstdint>

namespace baton::abi {

// --- userfaultfd -----------------------------------------------------------
inline constexpr std::uint64_t kUffdWpUnpopulated = 1u << 13;  // Linux 6.4
inline constexpr std::uint64_t kUffdWpAsync = 1u << 15;        // Linux 6.7
#ifdef UFFD_FEATURE_WP_UNPOPULATED
static_assert(kUffdWpUnpopulated == UFFD_FEATURE_WP_UNPOPULATED);
#endif
#ifdef UFFD_FEATURE_WP_ASYNC
static_assert(kUffdWpAsync == UFFD_FEATURE_WP_ASYNC);
#endif
static_assert(UFFD_FEATURE_WP_HUGETLBFS_SHMEM == 1u << 12);    // Linux 5.19: the one before

// --- PAGEMAP_SCAN on /proc/PID/pagemap, Linux 6.7 ---------------------------
struct PageRegion {
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t categories;
};
static_assert(sizeof(PageRegion) == 24);

struct PagemapScanArg {
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t walk_end;
  std::uint64_t vec;
  std::uint64_t vec_len;
  std::uint64_t max_pages;
  std::uint64_t category_inverted;
  std::uint64_t category_mask;
  std::uint64_t category_anyof_mask;
  std::uint64_t return_mask;
};
static_assert(sizeof(PagemapScanArg) == 96);

inline constexpr unsigned long kPagemapScan = _IOWR('f', 16, PagemapScanArg);
static_assert(kPagemapScan == 0xc0606610);

inline constexpr std::uint64_t kPageIsWpAllowed = 1 << 0;
inline constexpr std::uint64_t kPageIsWritten = 1 << 1;
inline constexpr std::uint64_t kPageIsFile = 1 << 2;
inline constexpr std::uint64_t kPageIsPresent = 1 << 3;
inline constexpr std::uint64_t kPageIsSwapped = 1 << 4;
inline constexpr std::uint64_t kPageIsPfnZero = 1 << 5;
inline constexpr std::uint64_t kPageIsGuard = 1 << 8;            // Linux 6.15
inline constexpr std::uint64_t kScanWpMatching = 1 << 0;
inline constexpr std::uint64_t kScanCheckWpAsync = 1 << 1;

// --- entries of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst) ---
inline constexpr std::uint64_t kPagemapPresent = 1ull << 63;
inline constexpr std::uint64_t kPagemapSwapped = 1ull << 62;
inline constexpr std::uint64_t kPagemapFile = 1ull << 61;
inline constexpr std::uint64_t kPagemapGuard = 1ull << 58;     // Linux 6.15
// A swap entry of this type is no page but a marker in an empty entry (SWP_PTE_MARKER,
// include/linux/swap.h: the last of the 32 types). Linux 5.19.
inline constexpr std::uint64_t kPagemapSwapTypeMask = 0x1f;
inline constexpr std::uint64_t kPagemapSwapTypeMarker = 31;

inline constexpr long kHugetlbfsMagic = 0x958458f6;

}  // namespace baton::abi
