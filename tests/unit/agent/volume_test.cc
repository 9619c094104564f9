// FileTree against a model, and as a memory object: what is collected of one, filled into another,
// makes the same files.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "agent/volume/copy_tree.h"
#include "agent/volume/file_tree.h"

using namespace baton;
using namespace baton::volume;

namespace {

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "baton-volume-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

std::unique_ptr<FileTree> new_tree(const Folder& folder) {
  auto tree = FileTree::make(folder.path());
  EXPECT_TRUE(tree) << tree.error().message();
  return std::move(*tree);
}

std::string content(const FileTree& tree, std::uint64_t id) {
  std::string out(tree.find(id)->size, 0);
  const std::int64_t got = tree.read(id, std::as_writable_bytes(std::span(out)), 0);
  EXPECT_EQ(got, static_cast<std::int64_t>(out.size()));
  return out;
}

// Every file by its path: what there is to see of it.
void describe(const FileTree& tree, std::uint64_t id, const std::string& path, std::map<std::string, std::string>& out) {
  const File& file = *tree.find(id);
  const struct stat st = tree.status(file);
  std::string text = std::to_string(st.st_mode) + " " + std::to_string(st.st_uid) + ":" + std::to_string(st.st_gid) + " links " +
                     std::to_string(st.st_nlink) + " ino " + std::to_string(st.st_ino) + " mtime " + std::to_string(file.mtime_ns) + " " + file.target;
  if (S_ISREG(file.mode)) text += " " + std::to_string(file.size) + " " + std::to_string(std::hash<std::string>()(content(tree, id)));
  out[path] = text;
  for (const auto& [order, name] : file.order) describe(tree, tree.child(id, name), path + "/" + std::to_string(order) + name, out);
}

std::map<std::string, std::string> description(const FileTree& tree) {
  std::map<std::string, std::string> out;
  describe(tree, kRootFile, "", out);
  return out;
}

// Everything that has changed goes over, in pieces of a few pages.
void follow(FileTree& from, FileTree& to, std::size_t room = 3) {
  std::vector<std::byte> pages(room * kPage);
  std::vector<std::uint64_t> numbers;
  std::vector<PageRun> gone;
  for (;;) {
    auto taken = from.collect(pages, numbers, gone);
    ASSERT_TRUE(taken) << taken.error().message();
    for (PageRun run : gone) ASSERT_TRUE(to.drop(run));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      auto filled = to.fill(numbers[i], std::span(pages).subspan(i * kPage, kPage));
      ASSERT_TRUE(filled) << filled.error().message();
    }
    if (from.pages_changed() == 0) break;
  }
  auto settled = to.settle();
  ASSERT_TRUE(settled) << settled.error().message();
}

// The same calls, on strings.
struct Model {
  std::map<std::string, std::shared_ptr<std::string>> files;   // by path; hard links share
  std::map<std::string, bool> folders{{"", true}};
};

std::uint64_t find_path(const FileTree& tree, const std::string& path) {
  std::uint64_t id = kRootFile;
  for (std::size_t at = 1; id != 0 && at < path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    id = tree.child(id, path.substr(at, end - at));
    at = end + 1;
  }
  return id;
}

std::pair<std::uint64_t, std::string> place(const FileTree& tree, const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return {find_path(tree, path.substr(0, slash)), path.substr(slash + 1)};
}

void check(const FileTree& tree, const Model& model) {
  for (const auto& [path, text] : model.files) {
    const std::uint64_t id = find_path(tree, path);
    ASSERT_NE(id, 0u) << path;
    ASSERT_TRUE(content(tree, id) == *text) << path << " differs";
    ASSERT_EQ(tree.status(*tree.find(id)).st_nlink, static_cast<nlink_t>(text.use_count())) << path;
  }
  for (const auto& [path, there] : model.folders) {
    const File* folder = tree.find(find_path(tree, path));
    ASSERT_TRUE(folder != nullptr && folder->is_folder()) << path;
  }
  std::size_t names = 0;
  for (const auto& [path, text] : description(tree)) names += path.empty() ? 0 : 1;
  ASSERT_EQ(names, model.files.size() + model.folders.size() - 1);
}

class Actor {
 public:
  Actor(FileTree& tree, Model& model, unsigned seed) : tree_(tree), model_(model), random_(seed) {}

  void act() {
    switch (pick(12)) {
      case 11: return allocate();
      case 0: return make_folder();
      case 1: return remove();
      case 2: return rename();
      case 3: return link();
      case 4: return truncate();
      case 5: return punch();
      case 6: case 7: return make_file();
      default: return write();
    }
  }

 private:
  std::size_t pick(std::size_t below) { return std::uniform_int_distribution<std::size_t>(0, below - 1)(random_); }
  std::string a_folder() { return std::next(model_.folders.begin(), static_cast<long>(pick(model_.folders.size())))->first; }
  std::string a_name() { return a_folder() + "/" + std::string(1, static_cast<char>('a' + pick(12))); }
  std::string a_file() {
    return model_.files.empty() ? std::string() : std::next(model_.files.begin(), static_cast<long>(pick(model_.files.size())))->first;
  }
  bool there(const std::string& path) const { return model_.files.contains(path) || model_.folders.contains(path); }

  void make_folder() {
    const std::string path = a_name();
    auto [folder, name] = place(tree_, path);
    std::uint64_t id = 0;
    const int got = tree_.make_file(folder, name, S_IFDIR | 0755, 0, 7, 8, "", id);
    ASSERT_EQ(got, there(path) ? -EEXIST : 0);
    if (got == 0) model_.folders[path] = true;
  }
  void make_file() {
    const std::string path = a_name();
    auto [folder, name] = place(tree_, path);
    std::uint64_t id = 0;
    const int got = tree_.make_file(folder, name, S_IFREG | 0640, 0, 7, 8, "", id);
    ASSERT_EQ(got, there(path) ? -EEXIST : 0);
    if (got == 0) model_.files[path] = std::make_shared<std::string>();
  }
  void remove() {
    const std::string path = a_name();
    auto [folder, name] = place(tree_, path);
    if (model_.files.contains(path)) {
      ASSERT_EQ(tree_.unlink(folder, name), 0);
      model_.files.erase(path);
    } else if (model_.folders.contains(path)) {
      const auto below = [&](const auto& entries) {
        auto it = entries.lower_bound(path + "/");
        return it != entries.end() && it->first.starts_with(path + "/");
      };
      const bool empty = !below(model_.files) && !below(model_.folders);
      ASSERT_EQ(tree_.remove_folder(folder, name), empty ? 0 : -ENOTEMPTY);
      if (empty) model_.folders.erase(path);
    } else {
      ASSERT_EQ(tree_.unlink(folder, name), -ENOENT);
    }
  }
  void rename() {
    const std::string from = a_file(), to = a_name();
    if (from.empty() || from == to) return;
    auto [folder, name] = place(tree_, from);
    auto [to_folder, to_name] = place(tree_, to);
    const int got = tree_.rename(folder, name, to_folder, to_name, 0);
    if (model_.folders.contains(to)) {
      ASSERT_EQ(got, -EISDIR);
      return;
    }
    ASSERT_EQ(got, 0);
    auto other = model_.files.find(to);
    if (other != model_.files.end() && other->second == model_.files[from]) return;   // two names of one file
    auto file = model_.files.extract(from);
    model_.files.erase(to);
    file.key() = to;
    model_.files.insert(std::move(file));
  }
  void link() {
    const std::string from = a_file(), to = a_name();
    if (from.empty()) return;
    auto [folder, name] = place(tree_, to);
    const int got = tree_.link(find_path(tree_, from), folder, name);
    ASSERT_EQ(got, there(to) ? -EEXIST : 0);
    if (got == 0) model_.files[to] = model_.files[from];
  }
  void write() {
    const std::string path = a_file();
    if (path.empty()) return;
    std::string text(1 + pick(9000), 0);
    for (char& c : text) c = static_cast<char>(random_());
    const std::size_t at = pick(3) == 0 ? pick(60000) : model_.files[path]->size();
    ASSERT_EQ(tree_.write(find_path(tree_, path), std::as_bytes(std::span(text)), at), static_cast<std::int64_t>(text.size()));
    std::string& held = *model_.files[path];
    if (held.size() < at + text.size()) held.resize(at + text.size());
    held.replace(at, text.size(), text);
  }
  void truncate() {
    const std::string path = a_file();
    if (path.empty()) return;
    const std::uint64_t size = pick(40000);
    Changes changes;
    changes.size = &size;
    ASSERT_EQ(tree_.change(find_path(tree_, path), changes), 0);
    model_.files[path]->resize(size);
  }
  void punch() {
    const std::string path = a_file();
    if (path.empty()) return;
    std::string& held = *model_.files[path];
    const std::size_t from = pick(30000), bytes = 1 + pick(20000);
    ASSERT_EQ(tree_.allocate(find_path(tree_, path), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, bytes), 0);
    for (std::size_t i = from; i < std::min(from + bytes, held.size()); ++i) held[i] = 0;
  }

  void allocate() {
    const std::string path = a_file();
    if (path.empty()) return;
    const std::size_t from = pick(30000), bytes = 1 + pick(20000);
    ASSERT_EQ(tree_.allocate(find_path(tree_, path), 0, from, bytes), 0);
    std::string& held = *model_.files[path];
    if (held.size() < from + bytes) held.resize(from + bytes);
  }

  FileTree& tree_;
  Model& model_;
  std::mt19937 random_;
};

class FileTreeModel : public testing::TestWithParam<unsigned> {};

TEST_P(FileTreeModel, does_what_the_model_does_and_a_copy_follows_it) {
  Folder here, there;
  auto tree = new_tree(here), copy = new_tree(there);
  Model model;
  Actor actor(*tree, model, GetParam());
  for (int round = 0; round < 40; ++round) {
    for (int i = 0; i < 25; ++i) {
      actor.act();
      if (HasFatalFailure()) return;
    }
    check(*tree, model);
    if (HasFatalFailure()) return;
    follow(*tree, *copy, 1 + round % 7);
    if (HasFatalFailure()) return;
    ASSERT_EQ(description(*copy), description(*tree)) << "after round " << round;
  }
  // One that begins late gets all of it.
  Folder third;
  auto late = new_tree(third);
  tree->change_all();
  follow(*tree, *late, 64);
  ASSERT_EQ(description(*late), description(*tree));
  // And goes on from there, as a program does after a takeover.
  Actor heir(*late, model, GetParam() + 100);
  for (int i = 0; i < 400; ++i) {
    heir.act();
    if (HasFatalFailure()) return;
  }
  check(*late, model);
}
INSTANTIATE_TEST_SUITE_P(seeds, FileTreeModel, testing::Range(1u, 13u));

TEST(FileTree, what_is_unlinked_lives_as_long_as_it_is_looked_at) {
  Folder here;
  auto tree = new_tree(here);
  std::uint64_t id = 0;
  ASSERT_EQ(tree->make_file(kRootFile, "a", S_IFREG | 0600, 0, 0, 0, "", id), 0);
  tree->look_up(id);
  ASSERT_EQ(tree->write(id, std::as_bytes(std::span("abc", 3)), 0), 3);
  ASSERT_EQ(tree->unlink(kRootFile, "a"), 0);
  ASSERT_NE(tree->find(id), nullptr);
  EXPECT_EQ(content(*tree, id), "abc");
  tree->forget(id, 1);
  EXPECT_EQ(tree->find(id), nullptr);
}

TEST(FileTree, a_file_beyond_one_segment_is_read_and_followed) {
  Folder here, there;
  auto tree = new_tree(here), copy = new_tree(there);
  std::uint64_t id = 0;
  ASSERT_EQ(tree->make_file(kRootFile, "big", S_IFREG | 0600, 0, 0, 0, "", id), 0);
  const std::string text = "across the border";
  const std::uint64_t at = kSegmentBytes - 5;
  ASSERT_EQ(tree->write(id, std::as_bytes(std::span(text)), at), static_cast<std::int64_t>(text.size()));
  follow(*tree, *copy);
  std::string back(text.size(), 0);
  ASSERT_EQ(copy->read(id, std::as_writable_bytes(std::span(back)), at), static_cast<std::int64_t>(text.size()));
  EXPECT_EQ(back, text);
  EXPECT_EQ(copy->seek(id, 0, SEEK_DATA), static_cast<std::int64_t>(kSegmentBytes - kPage));
  EXPECT_EQ(tree->write(id, std::as_bytes(std::span(text)), std::uint64_t{1} << 40), -EFBIG);
}

TEST(FileTree, refuses_damaged_records) {
  Folder here;
  auto tree = new_tree(here);
  std::vector<std::byte> page(kPage, std::byte{0xff});
  EXPECT_EQ(tree->fill(5, page).error().code, Code::kCorrupt);
  std::fill(page.begin(), page.end(), std::byte{0});
  EXPECT_EQ(tree->fill(5, page).error().code, Code::kCorrupt);
  EXPECT_EQ(tree->fill(std::uint64_t{kMaxSegments} << kSegmentBits, page).error().code, Code::kCorrupt);
  // A name in a folder that is none.
  Folder other;
  auto from = new_tree(other);
  std::uint64_t folder = 0, file = 0;
  ASSERT_EQ(from->make_file(kRootFile, "d", S_IFDIR | 0700, 0, 0, 0, "", folder), 0);
  ASSERT_EQ(from->make_file(folder, "f", S_IFREG | 0600, 0, 0, 0, "", file), 0);
  std::vector<std::byte> pages(8 * kPage);
  std::vector<std::uint64_t> numbers;
  std::vector<PageRun> gone;
  ASSERT_TRUE(from->collect(pages, numbers, gone));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    if (numbers[i] != file) continue;
    ASSERT_TRUE(tree->fill(file, std::span(pages).subspan(i * kPage, kPage)));
  }
  EXPECT_EQ(tree->settle().error().code, Code::kCorrupt);
}

TEST(FileTree, room_that_was_only_reserved_can_be_written_after_a_takeover) {
  Folder here, there;
  auto tree = new_tree(here), copy = new_tree(there);
  std::uint64_t id = 0;
  ASSERT_EQ(tree->make_file(kRootFile, "reserved", S_IFREG | 0600, 0, 0, 0, "", id), 0);
  ASSERT_EQ(tree->allocate(id, 0, 0, 100000), 0);
  follow(*tree, *copy);
  EXPECT_EQ(content(*copy, id), std::string(100000, 0));
  ASSERT_EQ(copy->allocate(id, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 10, 5000), 0);
  ASSERT_EQ(copy->write(id, std::as_bytes(std::span("abc", 3)), 50000), 3);
  EXPECT_EQ(content(*copy, id).substr(50000, 3), "abc");
}

TEST(CopyTree, a_folder_goes_in_and_comes_out_the_same) {
  Folder source, target, content_folder;
  std::filesystem::create_directories(source / "a/b");
  std::ofstream(source / "a/b/text") << "hello";
  std::ofstream(source / "plain") << std::string(3 << 20, 'x');
  std::filesystem::create_hard_link(source / "plain", source / "a/same");
  std::filesystem::create_symlink("a/b", source / "link");
  ASSERT_EQ(::mkfifo((source / "pipe").c_str(), 0620), 0);
  ASSERT_EQ(::chmod((source / "plain").c_str(), 0604), 0);
  ASSERT_EQ(::truncate((source / "plain").c_str(), 9 << 20), 0);
  auto tree = new_tree(content_folder);
  auto taken = import_folder(*tree, source.path());
  ASSERT_TRUE(taken) << taken.error().message();
  // Elsewhere, what was there is kept.
  std::ofstream(target / "mine") << "keep me";
  Folder second;
  auto copy = new_tree(second);
  follow(*tree, *copy, 100);
  auto written = export_folder(*copy, target.path());
  ASSERT_TRUE(written) << written.error().message();
  auto text = [](const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  EXPECT_EQ(text(target / "a/b/text"), "hello");
  EXPECT_EQ(text(target / "a/same"), text(source / "plain"));
  EXPECT_EQ(text(target / ".baton-before/mine"), "keep me");
  struct stat before {}, after {}, other {};
  ASSERT_EQ(::stat((source / "plain").c_str(), &before), 0);
  ASSERT_EQ(::stat((target / "plain").c_str(), &after), 0);
  ASSERT_EQ(::stat((target / "a/same").c_str(), &other), 0);
  EXPECT_EQ(after.st_ino, other.st_ino);
  EXPECT_EQ(after.st_mode, before.st_mode);
  EXPECT_EQ(after.st_size, before.st_size);
  EXPECT_EQ(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
  EXPECT_LT(after.st_blocks * 512, 5 << 20) << "holes stay holes";
  EXPECT_EQ(std::filesystem::read_symlink(target / "link"), "a/b");
  EXPECT_TRUE(std::filesystem::is_fifo(target / "pipe"));
  // Written again, what it wrote itself goes.
  ASSERT_TRUE(export_folder(*copy, target.path()));
  EXPECT_EQ(text(target / ".baton-before/mine"), "keep me");
  EXPECT_EQ(text(target / "a/b/text"), "hello");
}

}  // namespace
