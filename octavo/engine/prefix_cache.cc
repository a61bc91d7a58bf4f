#include "octavo/engine/prefix_cache.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/engine/page_pool.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

uint64_t FirstWord(const Hash128& hash) {
  uint64_t word;
  std::memcpy(&word, hash.data(), sizeof(word));
  return word;
}

}  // namespace

PrefixCache::PrefixCache(PagePool* pool, bool enabled, int64_t num_stale_kept)
    : pool_(*pool),
      enabled_(enabled),
      num_stale_kept_(num_stale_kept),
      entries_(static_cast<size_t>(pool->num_pages())),
      tokens_(static_cast<size_t>(pool->num_pages() * kPageTokens)),
      buckets_(std::bit_ceil(2 * static_cast<size_t>(pool->num_pages()) + 1), -1),
      tail_buckets_(buckets_.size(), -1) {}

std::span<int32_t> PrefixCache::Tokens(int32_t page) {
  return std::span(tokens_).subspan(static_cast<size_t>(page * kPageTokens), kPageTokens);
}

uint64_t PrefixCache::Hash(const PageKey& key) const { return Hash(key, generation_); }

uint64_t PrefixCache::Hash(const PageKey& key, uint64_t generation) const {
  std::array<std::byte, sizeof(uint64_t) + kPageTokens * sizeof(int32_t)> bytes;
  uint64_t parent_hash;
  if (key.parent >= 0) {
    parent_hash = At(key.parent).hash;
  } else {
    parent_hash = FirstWord(HashText(key.extra_key)) ^ generation;
  }
  std::memcpy(bytes.data(), &parent_hash, sizeof(parent_hash));
  std::memcpy(bytes.data() + sizeof(parent_hash), key.tokens.data(), key.tokens.size_bytes());
  return FirstWord(
      HashBytes(std::span(bytes).first(sizeof(parent_hash) + key.tokens.size_bytes())));
}

int32_t PrefixCache::Find(const PageKey& key, uint64_t hash, uint64_t generation) {
  for (int32_t page = Bucket(hash); page >= 0; page = At(page).next_in_bucket) {
    const Entry& entry = At(page);
    if (entry.hash == hash && entry.parent == key.parent && entry.generation == generation &&
        std::ranges::equal(Tokens(page), key.tokens) &&
        (key.parent >= 0 || entry.extra_key == key.extra_key)) {
      return page;
    }
  }
  return -1;
}

void PrefixCache::LinkLru(int32_t page) {
  Entry& entry = At(page);
  entry.evictable = true;
  entry.lru_prev = lru_tail_;
  entry.lru_next = -1;
  (lru_tail_ >= 0 ? At(lru_tail_).lru_next : lru_head_) = page;
  lru_tail_ = page;
  ++num_evictable_;
}

void PrefixCache::UnlinkLru(int32_t page) {
  Entry& entry = At(page);
  (entry.lru_prev >= 0 ? At(entry.lru_prev).lru_next : lru_head_) = entry.lru_next;
  (entry.lru_next >= 0 ? At(entry.lru_next).lru_prev : lru_tail_) = entry.lru_prev;
  entry.evictable = false;
  --num_evictable_;
}

void PrefixCache::Acquire(int32_t page) {
  if (At(page).evictable) {
    UnlinkLru(page);
  }
  pool_.AddRef(page);
}

// Takes `page` out of the cache and drops the cache's reference.
void PrefixCache::Forget(int32_t page) {
  Entry& entry = At(page);
  CHECK(entry.cached);
  CHECK(entry.num_children == 0);
  int32_t* link = &Bucket(entry.hash);
  while (*link != page) {
    link = &At(*link).next_in_bucket;
  }
  *link = entry.next_in_bucket;
  if (entry.parent >= 0) {
    --At(entry.parent).num_children;
  }
  if (entry.evictable) {
    UnlinkLru(page);
  }
  entry.cached = false;
  --num_cached_;
  if (pool_.Release(page) == 0) {
    UnnameTail(page);
  }
}

int32_t PrefixCache::AllocatePage() {
  if (pool_.num_free() == 0 && lru_head_ >= 0) {
    Forget(lru_head_);
  }
  return pool_.Allocate();
}

void PrefixCache::ReleasePage(int32_t page) {
  const int32_t left = pool_.Release(page);
  if (left == 1 && At(page).cached) {
    LinkLru(page);
  } else if (left == 0) {
    UnnameTail(page);
  }
}

// The pages of one generation with which the query's tokens begin, without references.
void PrefixCache::AppendChain(const Query& query, uint64_t generation,
                              std::vector<int32_t>* pages) {
  const auto num_tokens = static_cast<int64_t>(query.tokens.size());
  const int64_t max_pages = std::min(query.max_tokens, num_tokens) / kPageTokens;
  PageKey key = {.extra_key = query.extra_key, .parent = -1, .tokens = {}};
  for (int64_t i = 0; i < max_pages; ++i) {
    key.tokens = query.tokens.subspan(static_cast<size_t>(i * kPageTokens), kPageTokens);
    const int32_t page = Find(key, Hash(key, generation), generation);
    if (page < 0) {
      return;
    }
    pages->push_back(page);
    key.parent = page;
  }
}

int64_t PrefixCache::Match(const Query& query, std::vector<int32_t>* pages) {
  CHECK(pages->empty());
  if (!enabled_) {
    return 0;
  }
  AppendChain(query, generation_, pages);
  const int64_t max_behind =
      std::min({query.max_behind, num_stale_kept_, static_cast<int64_t>(generation_)});
  int64_t behind = 0;
  for (int64_t candidate = 1; candidate <= max_behind; ++candidate) {
    // The candidate is written behind the best so far, and takes its place if it is longer.
    const size_t best = pages->size();
    AppendChain(query, generation_ - static_cast<uint64_t>(candidate), pages);
    if (pages->size() > 2 * best) {
      pages->erase(pages->begin(), pages->begin() + static_cast<std::ptrdiff_t>(best));
      behind = candidate;
    } else {
      pages->resize(best);
    }
  }
  for (const int32_t page : *pages) {
    Acquire(page);
  }
  return behind;
}

int32_t PrefixCache::Insert(const PageKey& key, int32_t page) {
  if (!enabled_) {
    return page;
  }
  CHECK(static_cast<int64_t>(key.tokens.size()) == kPageTokens);
  CHECK(!At(page).cached);
  if (key.parent >= 0) {
    CHECK(At(key.parent).cached);
  }
  const uint64_t hash = Hash(key);
  if (const int32_t twin = Find(key, hash, generation_); twin >= 0) {
    Acquire(twin);
    ReleasePage(page);
    return twin;
  }
  Entry& entry = At(page);
  entry.cached = true;
  entry.parent = key.parent;
  entry.num_children = 0;
  entry.generation = generation_;
  entry.hash = hash;
  entry.extra_key = key.parent < 0 ? key.extra_key : std::string_view();
  std::ranges::copy(key.tokens, Tokens(page).begin());
  if (key.parent >= 0) {
    ++At(key.parent).num_children;
  }
  entry.next_in_bucket = Bucket(hash);
  Bucket(hash) = page;
  ++num_cached_;
  pool_.AddRef(page);  // The cache's own.
  return page;
}

int32_t PrefixCache::FindTail(const PageKey& key, uint64_t hash) {
  for (int32_t page = TailBucket(hash); page >= 0; page = At(page).next_in_tail_bucket) {
    const Entry& entry = At(page);
    if (entry.tail_hash == hash && entry.tail_parent == key.parent &&
        entry.tail_len == static_cast<int32_t>(key.tokens.size()) &&
        std::ranges::equal(Tokens(page).first(key.tokens.size()), key.tokens) &&
        (key.parent >= 0 || entry.extra_key == key.extra_key)) {
      return page;
    }
  }
  return -1;
}

int32_t PrefixCache::FindTail(const PageKey& key) {
  return enabled_ && !key.tokens.empty() ? FindTail(key, Hash(key)) : -1;
}

void PrefixCache::NameTail(const PageKey& key, int32_t page) {
  if (!enabled_ || key.tokens.empty()) {
    return;
  }
  CHECK(static_cast<int64_t>(key.tokens.size()) < kPageTokens);
  Entry& entry = At(page);
  const uint64_t hash = Hash(key);
  if (entry.tail_len > 0 || FindTail(key, hash) >= 0) {
    return;
  }
  entry.tail_len = static_cast<int32_t>(key.tokens.size());
  entry.tail_parent = key.parent;
  entry.tail_hash = hash;
  entry.extra_key = key.parent < 0 ? key.extra_key : std::string_view();
  std::ranges::copy(key.tokens, Tokens(page).begin());
  entry.next_in_tail_bucket = TailBucket(hash);
  TailBucket(hash) = page;
}

void PrefixCache::UnnameTail(int32_t page) {
  Entry& entry = At(page);
  if (entry.tail_len == 0) {
    return;
  }
  int32_t* link = &TailBucket(entry.tail_hash);
  while (*link != page) {
    link = &At(*link).next_in_tail_bucket;
  }
  *link = entry.next_in_tail_bucket;
  entry.tail_len = 0;
}

void PrefixCache::Clear() {
  std::ranges::fill(buckets_, -1);
  std::ranges::fill(tail_buckets_, -1);
  lru_head_ = -1;
  lru_tail_ = -1;
  num_evictable_ = 0;
  num_cached_ = 0;
  for (size_t page = 0; page < entries_.size(); ++page) {
    const bool was_cached = entries_[page].cached;
    entries_[page] = Entry();
    if (was_cached) {
      pool_.Release(static_cast<int32_t>(page));
    }
  }
}

void PrefixCache::BumpGeneration() {
  ++generation_;
  if (num_stale_kept_ == 0) {
    Clear();
    return;
  }
  for (size_t page = 0; page < entries_.size(); ++page) {
    UnnameTail(static_cast<int32_t>(page));
  }
  const auto num_kept = static_cast<uint64_t>(num_stale_kept_);
  ForgetChainsBefore(generation_ - std::min(generation_, num_kept));
}

// A chain is of one generation, so from each of its leaves on everything goes.
void PrefixCache::ForgetChainsBefore(uint64_t generation) {
  for (size_t i = 0; i < entries_.size(); ++i) {
    auto page = static_cast<int32_t>(i);
    while (page >= 0 && At(page).cached && At(page).generation < generation &&
           At(page).num_children == 0) {
      const int32_t parent = At(page).parent;
      Forget(page);
      page = parent;
    }
  }
}

void PrefixCache::CheckInvariants() const {
  std::vector<int32_t> num_children(entries_.size(), 0);
  int64_t num_cached = 0;
  int64_t num_evictable = 0;
  for (size_t page = 0; page < entries_.size(); ++page) {
    const Entry& entry = entries_[page];
    if (!entry.cached) {
      CHECK(!entry.evictable);
      continue;
    }
    ++num_cached;
    num_evictable += entry.evictable ? 1 : 0;
    CHECK(entry.generation <= generation_);
    CHECK(generation_ - entry.generation <= static_cast<uint64_t>(num_stale_kept_));
    CHECK(pool_.ref_count(static_cast<int32_t>(page)) >= 1);
    CHECK(entry.evictable == (pool_.ref_count(static_cast<int32_t>(page)) == 1));
    if (entry.parent >= 0) {
      CHECK(At(entry.parent).cached);
      CHECK(At(entry.parent).generation == entry.generation);
      ++num_children[static_cast<size_t>(entry.parent)];
    }
  }
  CHECK(num_cached == num_cached_);
  CHECK(num_evictable == num_evictable_);
  for (size_t page = 0; page < entries_.size(); ++page) {
    if (entries_[page].cached) {
      CHECK(entries_[page].num_children == num_children[page]);
    }
  }
  for (size_t page = 0; page < entries_.size(); ++page) {
    const Entry& entry = entries_[page];
    if (entry.tail_len > 0) {
      CHECK(pool_.ref_count(static_cast<int32_t>(page)) > 0);
      if (entry.tail_parent >= 0) {
        CHECK(At(entry.tail_parent).cached);
      }
    }
  }
  int64_t num_listed = 0;
  for (int32_t page = lru_head_; page >= 0; page = At(page).lru_next) {
    CHECK(At(page).evictable);
    ++num_listed;
  }
  CHECK(num_listed == num_evictable_);
}

}  // namespace octavo
