// Joseph's method on the processor. Bins are taken in blocks of LANES, whose positions are computed in vectors; images of
// a batch are taken as many at a time as fill a cache line, side by side in memory, and share the positions.
// Neither direction has two threads write to one place, and neither result depends on their number.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "joseph.h"

namespace {

constexpr int LANES = 64;   // bins of a block
constexpr int GROUP = 8;    // blocks of neighbouring views that read the same pixels while these are in the cache
constexpr int STRIP = 16;   // rows that they read together
constexpr int TILE = 16;    // side of the squares by which images are transposed

struct Geometry {
    const void* rays;     // (3, views, bins): start, step, length
    const int32_t* runs;  // (runs, 3): first ray, count, axis; neighbours of one view, all with rows along y (0) or x (1)
    int n_runs, views, bins, height, width;
};

struct Block {
    int64_t ray;
    int lanes, bin;
    joseph::Range rows;
};

template <class T> struct Aligned {
    struct Free {
        void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    std::unique_ptr<T[], Free> data;
    explicit Aligned(size_t size) : data(static_cast<T*>(::operator new[](size * sizeof(T), std::align_val_t(64)))) {}
    T* get() const { return data.get(); }
};

// start, step and length of the rays of a block; idle lanes pass beside the image.
template <class T> struct Lanes {
    alignas(64) T start[LANES], step[LANES], length[LANES];

    void load(const Geometry& g, const Block& block) {
        const T* from = static_cast<const T*>(g.rays) + block.ray;
        const int64_t size = int64_t(g.views) * g.bins;
        std::fill_n(start, LANES, T(-1));
        std::fill_n(step, LANES, T(0));
        std::copy_n(from, block.lanes, start);
        std::copy_n(from + size, block.lanes, step);
        std::copy_n(from + 2 * size, block.lanes, length);
    }
};

// The runs of one axis, cut into blocks; same bins of neighbouring views follow each other.
template <class T> std::vector<Block> blocks(const Geometry& g, int axis, int rows, int columns) {
    const T* start = static_cast<const T*>(g.rays);
    const T* step = start + int64_t(g.views) * g.bins;
    std::vector<Block> result;
    for (int r = 0; r < g.n_runs; ++r) {
        const int32_t* run = g.runs + 3 * r;
        if (run[2] != axis) continue;
        const int64_t end = int64_t(run[0]) + run[1];
        for (int64_t ray = run[0]; ray < end;) {
            const int bin = int(ray % g.bins), lanes = int(std::min<int64_t>(LANES - bin % LANES, end - ray));
            Block block{ray, lanes, bin / LANES, {rows, 0}};
            for (int l = 0; l < lanes; ++l) {
                const joseph::Range met = joseph::rows_met(start[ray + l], step[ray + l], rows, columns);
                if (met.first >= met.last) continue;
                block.rows.first = std::min(block.rows.first, met.first);
                block.rows.last = std::max(block.rows.last, met.last);
            }
            if (block.rows.first < block.rows.last) result.push_back(block);
            ray += lanes;
        }
    }
    std::stable_sort(result.begin(), result.end(), [](const Block& a, const Block& b) { return a.bin < b.bin; });
    return result;
}

// Rows of the image, or of its transpose, between columns of zeros; B images side by side, those that are not there 0.
template <class T, int B>
void rows_of(T* padded, const T* images, int count, bool transposed, int rows, int columns, int threads) {
    const int64_t stride = int64_t(columns + 3) * B, size = int64_t(rows) * columns;
#pragma omp parallel for num_threads(threads)
    for (int top = 0; top < rows; top += TILE) {
        const int bottom = std::min(rows, top + TILE);
        for (int k = top; k < bottom; ++k) {
            std::fill_n(padded + k * stride, B, T(0));
            std::fill_n(padded + k * stride + int64_t(columns + 1) * B, 2 * B, T(0));
        }
        for (int left = 0; left < columns; left += TILE) {
            const int right = std::min(columns, left + TILE);
            for (int c = 0; c < B; ++c) {
                T* to = padded + B + c;
                const T* from = images + (c < count ? c : 0) * size;
                const T keep = c < count ? T(1) : T(0);
                if (transposed) {
                    for (int i = left; i < right; ++i)
                        for (int k = top; k < bottom; ++k) to[k * stride + i * B] = keep * from[int64_t(i) * rows + k];
                } else {
                    for (int k = top; k < bottom; ++k)
                        for (int i = left; i < right; ++i) to[k * stride + i * B] = keep * from[int64_t(k) * columns + i];
                }
            }
        }
    }
}

template <class T, int B>
void read_rows(const Lanes<T>& lanes, int first, int last, const T* image, int64_t stride, int columns,
               T* __restrict sum) {
    for (int k = first; k < last; ++k) {
        const T* __restrict row = image + k * stride;
        for (int l = 0; l < LANES; ++l) {
            const auto c = joseph::crossing(lanes.start[l], lanes.step[l], k, columns);
            const int i = c.index * B;  // an index, not a pointer: compilers make vectors of it
            for (int b = 0; b < B; ++b) sum[l * B + b] += row[i + b] + c.upper * (row[i + B + b] - row[i + b]);
        }
    }
}

template <class T, int B>
void add_rows(const Lanes<T>& lanes, int first, int last, T* image, int64_t stride, int columns,
              const T* __restrict y) {
    for (int k = first; k < last; ++k) {
        T* __restrict row = image + k * stride;
        int index[LANES];
        T upper[LANES], lower[LANES];
        for (int l = 0; l < LANES; ++l) {
            const auto c = joseph::crossing(lanes.start[l], lanes.step[l], k, columns);
            index[l] = c.index * B;
            upper[l] = B == 1 ? c.upper * y[l] : c.upper;
            lower[l] = B == 1 ? y[l] - upper[l] : T(0);
        }
        // Neighbouring bins add to the same pixels, which would wait for each other: distant ones are taken in turn.
        constexpr int APART = LANES / 16;
        for (int q = 0; q < APART; ++q)
            for (int l = q; l < LANES; l += APART) {
                T* pixel = row + index[l];
                if constexpr (B == 1) {
                    pixel[0] += lower[l];
                    pixel[1] += upper[l];
                } else {
                    for (int b = 0; b < B; ++b) {
                        const T value = y[l * B + b], part = upper[l] * value;
                        pixel[b] += value - part;
                        pixel[B + b] += part;
                    }
                }
            }
    }
}

// B images (those beyond `count` are not there) to sinograms, which come in as zeros.
template <class T, int B> void forward(const T* images, T* sinograms, int count, const Geometry& g, int threads) {
    const int64_t size = int64_t(g.views) * g.bins;
    for (int axis = 0; axis < 2; ++axis) {
        const int rows = axis ? g.width : g.height, columns = axis ? g.height : g.width;
        const std::vector<Block> all = blocks<T>(g, axis, rows, columns);
        if (all.empty()) continue;
        const int64_t stride = int64_t(columns + 3) * B;
        const Aligned<T> padded(rows * stride);
        rows_of<T, B>(padded.get(), images, count, axis == 1, rows, columns, threads);
        const int groups = int((all.size() + GROUP - 1) / GROUP);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (int group = 0; group < groups; ++group) {
            const Block* block = all.data() + int64_t(group) * GROUP;
            const int n = int(std::min<int64_t>(GROUP, int64_t(all.size()) - int64_t(group) * GROUP));
            Lanes<T> lanes[GROUP];
            alignas(64) T sums[GROUP][LANES * B];
            std::memset(sums, 0, sizeof sums);
            for (int v = 0; v < n; ++v) lanes[v].load(g, block[v]);
            for (int top = 0; top < rows; top += STRIP)
                for (int v = 0; v < n; ++v) {
                    const int first = std::max(top, block[v].rows.first);
                    const int last = std::min(top + STRIP, block[v].rows.last);
                    read_rows<T, B>(lanes[v], first, last, padded.get(), stride, columns, sums[v]);
                }
            for (int v = 0; v < n; ++v)
                for (int c = 0; c < count; ++c)
                    for (int l = 0; l < block[v].lanes; ++l)
                        sinograms[c * size + block[v].ray + l] = lanes[v].length[l] * sums[v][l * B + c];
        }
    }
}

// B sinograms to images. Every thread owns strips of rows, and adds all views to them.
template <class T, int B> void adjoint(T* images, const T* sinograms, int count, const Geometry& g, int threads) {
    const int64_t size = int64_t(g.views) * g.bins, pixels = int64_t(g.height) * g.width;
    std::memset(images, 0, sizeof(T) * count * pixels);
    for (int axis = 0; axis < 2; ++axis) {
        const int rows = axis ? g.width : g.height, columns = axis ? g.height : g.width;
        const std::vector<Block> all = blocks<T>(g, axis, rows, columns);
        if (all.empty()) continue;
        const int64_t stride = int64_t(columns + 3) * B;
        const int strip = std::clamp(rows / (4 * threads), 4, 32), strips = (rows + strip - 1) / strip;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (int s = 0; s < strips; ++s) {
            const int top = s * strip, bottom = std::min(rows, top + strip);
            const Aligned<T> padded(strip * stride);
            std::memset(padded.get(), 0, sizeof(T) * strip * stride);
            Lanes<T> lanes;
            alignas(64) T y[LANES * B];
            for (const Block& block : all) {
                const int first = std::max(top, block.rows.first), last = std::min(bottom, block.rows.last);
                if (first >= last) continue;
                lanes.load(g, block);
                std::memset(y, 0, sizeof y);
                for (int c = 0; c < count; ++c)
                    for (int l = 0; l < block.lanes; ++l)
                        y[l * B + c] = lanes.length[l] * sinograms[c * size + block.ray + l];
                add_rows<T, B>(lanes, first, last, padded.get() - top * stride, stride, columns, y);
            }
            for (int c = 0; c < count; ++c) {
                const T* from = padded.get() + B + c;
                T* to = images + c * pixels;
                if (axis) {
                    for (int i = 0; i < columns; ++i)
                        for (int k = top; k < bottom; ++k) to[int64_t(i) * rows + k] += from[(k - top) * stride + i * B];
                } else {
                    for (int k = top; k < bottom; ++k)
                        for (int i = 0; i < columns; ++i) to[int64_t(k) * columns + i] += from[(k - top) * stride + i * B];
                }
            }
        }
    }
}

// Images by the cache line; few of them one by one, which is faster for less than half a line.
template <class T, class One, class Line> void by_lines(int batch, One one, Line line) {
    constexpr int B = 64 / int(sizeof(T));
    for (int c = 0; c < batch;) {
        const int count = std::min(B, batch - c);
        if (count < B / 2) one(c);
        else line(c, count);
        c += count < B / 2 ? 1 : count;
    }
}

template <class T> void forward(const T* images, T* sinograms, int batch, const Geometry& g, int threads) {
    const int64_t size = int64_t(g.views) * g.bins, pixels = int64_t(g.height) * g.width;
    by_lines<T>(
        batch, [&](int c) { forward<T, 1>(images + c * pixels, sinograms + c * size, 1, g, threads); },
        [&](int c, int n) { forward<T, 64 / sizeof(T)>(images + c * pixels, sinograms + c * size, n, g, threads); });
}

template <class T> void adjoint(T* images, const T* sinograms, int batch, const Geometry& g, int threads) {
    const int64_t size = int64_t(g.views) * g.bins, pixels = int64_t(g.height) * g.width;
    by_lines<T>(
        batch, [&](int c) { adjoint<T, 1>(images + c * pixels, sinograms + c * size, 1, g, threads); },
        [&](int c, int n) { adjoint<T, 64 / sizeof(T)>(images + c * pixels, sinograms + c * size, n, g, threads); });
}

}  // namespace

extern "C" {

// Whether this processor has the instructions for which the library was compiled.
int joseph_runs_here() {
#if defined(__x86_64__) && defined(__GNUC__)
#ifdef __AVX512F__
    if (!__builtin_cpu_supports("avx512f")) return 0;
#endif
#ifdef __AVX512BW__
    if (!__builtin_cpu_supports("avx512bw")) return 0;
#endif
#ifdef __AVX512VL__
    if (!__builtin_cpu_supports("avx512vl")) return 0;
#endif
#ifdef __AVX2__
    if (!__builtin_cpu_supports("avx2")) return 0;
#endif
#ifdef __FMA__
    if (!__builtin_cpu_supports("fma")) return 0;
#endif
#endif
    return 1;
}

#define INTERFACE(T, NAME)                                                                                             \
    void joseph_forward_##NAME(const T* images, T* sinograms, int batch, const T* rays, const int32_t* runs,           \
                               int n_runs, int views, int bins, int height, int width, int threads) {                  \
        forward<T>(images, sinograms, batch, {rays, runs, n_runs, views, bins, height, width}, threads);               \
    }                                                                                                                  \
    void joseph_adjoint_##NAME(const T* sinograms, T* images, int batch, const T* rays, const int32_t* runs,           \
                               int n_runs, int views, int bins, int height, int width, int threads) {                  \
        adjoint<T>(images, sinograms, batch, {rays, runs, n_runs, views, bins, height, width}, threads);               \
    }
INTERFACE(float, float32)
INTERFACE(double, float64)
}
