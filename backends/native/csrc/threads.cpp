// Helpers of a thread: they look for work for a while, then sleep.
#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace millstream {
namespace {

// How long a thread that waits keeps looking before it sleeps: longer than what mostly lies between two regions of
// a step, and a small part of the time that a shared core is given to a thread at once.
constexpr std::chrono::microseconds SPINNING(30);
constexpr int LOOKS = 32;  // between two looks at the clock

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Whether `holds` came true within SPINNING.
template <typename Condition>
bool spin_until(const Condition& holds) {
    const auto end = std::chrono::steady_clock::now() + SPINNING;
    do {
        for (int look = 0; look < LOOKS; look++) {
            if (holds()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

// Where one thread waits for what others bring about.
class Bed {
  public:
    template <typename Condition>
    void wait(const Condition& holds) {
        while (!spin_until(holds)) {
            std::unique_lock<std::mutex> lock(mutex_);
            asleep_.store(true);
            if (!holds()) woken_.wait(lock);
            asleep_.store(false);
        }
    }
    // Called after it has been brought about.
    void wake() {
        if (!asleep_.load() || !asleep_.exchange(false)) return;
        std::lock_guard<std::mutex> lock(mutex_);
        woken_.notify_one();
    }

  private:
    std::mutex mutex_;
    std::condition_variable woken_;
    std::atomic<bool> asleep_{false};
};

// The chunks begin .. end - 1; in one word, so that it changes as a whole.
struct alignas(8) Range {
    uint32_t begin, end;
};

class alignas(64) Share {
  public:
    void set(Range range) { range_.store(range); }
    // The first chunk. False: there is none.
    bool take(uint32_t& chunk) {
        Range range = range_.load();
        while (range.begin < range.end) {
            chunk = range.begin;
            if (range_.compare_exchange_weak(range, {range.begin + 1, range.end})) return true;
        }
        return false;
    }
    // The second half, of one the whole. Empty: there is nothing.
    Range halve() {
        Range range = range_.load();
        while (range.begin < range.end) {
            const uint32_t middle = range.begin + (range.end - range.begin) / 2;
            if (range_.compare_exchange_weak(range, {range.begin, middle})) return {middle, range.end};
        }
        return {0, 0};
    }

  private:
    std::atomic<Range> range_{Range{0, 0}};
};

// The helpers of one thread, its owner.
class Pool {
  public:
    explicit Pool(int generation) : generation(generation) {}
    ~Pool() {
        ending_.store(true);
        for (auto& helper : helpers_) {
            helper->bed.wake();
            helper->thread.join();
        }
    }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    void run(int64_t chunks, int64_t threads, ChunkRun run, const void* body) {
        grow(threads - 1);
        run_ = run;
        body_ = body;
        threads_ = threads;
        for (int64_t i = 0; i < threads; i++)
            shares_[i].set({(uint32_t)(chunks * i / threads), (uint32_t)(chunks * (i + 1) / threads)});
        gate_.store(++regions_ << NUMBER | (uint64_t)threads << THREADS | OPEN);
        for (int64_t i = 0; i + 1 < threads; i++) helpers_[i]->bed.wake();
        work(0);
        if (gate_.fetch_and(~OPEN) & INSIDE) bed_.wait([this] { return !(gate_.load() & INSIDE); });
    }

    const int generation;

  private:
    struct Helper {
        Bed bed;
        std::thread thread;
    };
    // The gate, from its lowest bit on: how many helpers are inside, whether the region may be entered, how many
    // threads it takes, its number.
    static constexpr int THREADS = 16, NUMBER = 32;
    static constexpr uint64_t OPEN = 1 << 15, INSIDE = OPEN - 1;
    static int64_t threads_of(uint64_t gate) { return gate >> THREADS & 0xffff; }

    void grow(int64_t helpers) {
        if (helpers <= (int64_t)helpers_.size()) return;
        shares_.reset(new Share[helpers + 1]);  // nobody is inside
        while ((int64_t)helpers_.size() < helpers) {
            const int64_t self = helpers_.size() + 1;
            helpers_.emplace_back(new Helper);
            Helper* helper = helpers_.back().get();
            helper->thread = std::thread([this, self, helper] { help(self, helper->bed); });
        }
    }

    void help(int64_t self, Bed& bed) {
        uint64_t last = 0;
        while (true) {
            uint64_t gate = 0;
            bed.wait([&] {
                gate = gate_.load();
                return ((gate & OPEN) && gate >> NUMBER != last && self < threads_of(gate)) || ending_.load();
            });
            if (ending_.load()) return;
            last = gate >> NUMBER;
            while ((gate & OPEN) && gate >> NUMBER == last)
                if (gate_.compare_exchange_weak(gate, gate + 1)) {
                    work(self);
                    if (!((gate_.fetch_sub(1) - 1) & (OPEN | INSIDE))) bed_.wake();
                    break;
                }
        }
    }

    void work(int64_t self) {
        Share& own = shares_[self];
        while (true) {
            for (uint32_t chunk; own.take(chunk);) run_(body_, chunk);
            Range found = {0, 0};
            for (int64_t i = 1; i < threads_ && found.begin == found.end; i++)
                found = shares_[(self + i) % threads_].halve();
            if (found.begin == found.end) return;
            own.set(found);
        }
    }

    std::vector<std::unique_ptr<Helper>> helpers_;
    std::unique_ptr<Share[]> shares_;
    std::atomic<bool> ending_{false};
    alignas(64) std::atomic<uint64_t> gate_{0};
    alignas(64) Bed bed_;
    uint64_t regions_ = 0;
    int64_t threads_ = 0;
    ChunkRun run_ = nullptr;
    const void* body_ = nullptr;
};

// A child of fork() has the thread that called it alone, so pools of former generations have no helpers.
int generation = 0;
const int registered = pthread_atfork(nullptr, nullptr, [] { generation++; });

thread_local int64_t count_of_this_thread = 1;
thread_local std::unique_ptr<Pool> pool_of_this_thread;

}  // namespace

int64_t thread_count() { return count_of_this_thread; }
void set_thread_count(int64_t count) { count_of_this_thread = count; }

void run_chunks(int64_t chunks, int64_t threads, ChunkRun run, const void* body) {
    std::unique_ptr<Pool>& pool = pool_of_this_thread;
    if (!pool || pool->generation != generation) {
        pool.release();  // what fork() has left of it cannot be ended
        pool.reset(new Pool(generation));
    }
    pool->run(chunks, threads, run, body);
}

}  // namespace millstream
