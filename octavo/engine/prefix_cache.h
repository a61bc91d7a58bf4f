#pragma once
// PrefixCache: full pages of KV that a later sequence with the same beginning can use again.
//
// An entry is one full page. Its key is the chain
//   hash(root)  = H(generation, extra_key)
//   hash(entry) = H(hash(parent), the page's 32 tokens)
// and a hit needs more than the hash: the tokens, the parent's page and, at the root, generation
// and extra_key must be equal too, so a collision costs a miss and never gives wrong KV.
//
// A page may also be named by the last tokens of a prompt, those after its last full page and
// before its last token, whose logits a sampler needs: a request with the same prompt copies the
// page's beginning and computes one token. What follows the named tokens in the page is of no
// concern to it: a copy's later positions are masked, and overwritten when their time comes.
//
// Entries of earlier generations are dropped when the weights change, unless the cache was told to
// keep some: then only who asks for them by name of their age (Query) is given them, whole chains
// of one generation, and nothing is ever added to such a chain.
//
// Pages that only the cache holds are evicted, least recently used first. A sequence that holds a
// page holds all pages before it and lets go of the last one first, so leaves are always older than
// their parents in that order, and eviction never cuts a chain.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/engine/page_pool.h"

namespace octavo {

// One thread. All pages of sequences are taken and released through this class.
class PrefixCache {
 public:
  // `pool` must outlive the cache. A cache that is not enabled never hits and keeps nothing.
  // `num_stale_kept`: generations before the present one whose entries stay.
  PrefixCache(PagePool* pool, bool enabled, int64_t num_stale_kept = 0);

  // A zeroed page with one reference, evicting if it must; -1 when every page is in use.
  int32_t AllocatePage();
  // Drops a sequence's reference. Release the pages of a sequence last to first.
  void ReleasePage(int32_t page);
  // Pages that AllocatePage can still hand out.
  int64_t num_available() const { return pool_.num_free() + num_evictable_; }
  int64_t num_cached() const { return num_cached_; }

  struct Query {
    std::string_view extra_key;
    std::span<const int32_t> tokens;
    int64_t max_tokens = 0;
    int64_t max_behind = 0;  // Generations that the pages may lie behind the present one.
  };
  // Puts the longest run of cached pages of one generation with which `tokens` begins, at most
  // max_tokens / kPageTokens of them, into `pages`, each with a reference for the caller. Of
  // equally long ones the newest. Returns how many generations they lie behind. `pages` was empty.
  int64_t Match(const Query& query, std::vector<int32_t>* pages);

  // What names a page: the page before it in its sequence (-1: none), and its tokens.
  struct PageKey {
    std::string_view extra_key;
    int32_t parent = -1;              // Must be cached, as Insert returned it.
    std::span<const int32_t> tokens;  // [kPageTokens]; fewer for a tail.
  };
  // Equal for equal keys of one generation; for others it nearly always differs.
  uint64_t Hash(const PageKey& key) const;
  // Offers a full page that the caller holds. Returns the page to use from now on: the same one,
  // or the one that already holds the same KV, with the caller's reference moved to it (equal
  // tokens under one generation have equal KV bits: DESIGN, promise 5).
  int32_t Insert(const PageKey& key, int32_t page);

  // Names a page, held by the caller, by the 1..kPageTokens - 1 tokens with which it begins. The
  // name goes with the page's last reference. Nothing happens when a page has the name already.
  void NameTail(const PageKey& key, int32_t page);
  // The page with that name, or -1. Valid until the next call that may free a page.
  int32_t FindTail(const PageKey& key);
  // Takes the name away, if there is one: for a page whose later tokens turned out to be poison,
  // since a masked NaN is still a NaN.
  void UnnameTail(int32_t page);

  // Forgets every entry and name; pages that sequences hold stay theirs.
  void Clear();
  // Entries made from now on belong to new weights. Forgets every name, and the entries that are
  // now older than what is kept.
  void BumpGeneration();
  uint64_t generation() const { return generation_; }

  bool enabled() const { return enabled_; }
  bool IsCached(int32_t page) const { return entries_[static_cast<size_t>(page)].cached; }
  // CHECKs the links, the chains and the reference counts of cached pages.
  void CheckInvariants() const;

 private:
  // Entry i describes page i of the pool.
  struct Entry {
    bool cached = false;
    bool evictable = false;  // In the LRU list: only the cache holds the page.
    int32_t parent = -1;
    int32_t num_children = 0;
    int32_t next_in_bucket = -1;
    int32_t lru_prev = -1;
    int32_t lru_next = -1;
    uint64_t generation = 0;
    uint64_t hash = 0;
    std::string extra_key;  // Of entries and names without a parent.
    // The page's name, independent of whether the page is cached.
    int32_t tail_len = 0;  // 0: none.
    int32_t tail_parent = -1;
    int32_t next_in_tail_bucket = -1;
    uint64_t tail_hash = 0;
  };

  Entry& At(int32_t page) { return entries_[static_cast<size_t>(page)]; }
  const Entry& At(int32_t page) const { return entries_[static_cast<size_t>(page)]; }
  int32_t& Bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  int32_t& TailBucket(uint64_t hash) { return tail_buckets_[hash & (tail_buckets_.size() - 1)]; }
  std::span<int32_t> Tokens(int32_t page);
  int32_t FindTail(const PageKey& key, uint64_t hash);
  uint64_t Hash(const PageKey& key, uint64_t generation) const;
  int32_t Find(const PageKey& key, uint64_t hash, uint64_t generation);
  void AppendChain(const Query& query, uint64_t generation, std::vector<int32_t>* pages);
  void ForgetChainsBefore(uint64_t generation);
  void Acquire(int32_t page);
  void Forget(int32_t page);
  void LinkLru(int32_t page);
  void UnlinkLru(int32_t page);

  PagePool& pool_;
  const bool enabled_;
  const int64_t num_stale_kept_;
  uint64_t generation_ = 0;
  std::vector<Entry> entries_;
  std::vector<int32_t> tokens_;        // [pages, kPageTokens]
  std::vector<int32_t> buckets_;       // First entry of each bucket, or -1; a power of two.
  std::vector<int32_t> tail_buckets_;  // The same of names.
  int32_t lru_head_ = -1;              // Evicted first.
  int32_t lru_tail_ = -1;
  int64_t num_evictable_ = 0;
  int64_t num_cached_ = 0;
};

}  // namespace octavo
