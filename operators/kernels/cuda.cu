// Joseph's method on a GPU: a thread for every ray, and for the adjoint a thread for every pixel, which gathers the rays
// that pass it. No two threads write to one place: the result is the same at every run.
#include <cstdint>

#include "joseph.h"

namespace {

constexpr int THREADS = 128;
constexpr int IMAGES = 4;  // that share the search for the rays of a pixel

template <class T> struct Geometry {
    const T *start, *step, *length;  // (views, bins)
    const int32_t* runs;             // (runs, 3): first ray, count, axis; see cpu.cpp
    int n_runs, height, width;
    int64_t size;  // views * bins
};

// `turned`: the transposed images, so that neighbouring rays read neighbouring pixels along either axis.
template <class T>
__global__ void forward_kernel(const T* images, const T* turned, T* sinograms, int batch, Geometry<T> g) {
    const int64_t pixels = int64_t(g.height) * g.width;
    for (int r = blockIdx.y; r < g.n_runs; r += gridDim.y) {
        const int32_t* run = g.runs + 3 * r;
        const int lane = blockIdx.x * blockDim.x + threadIdx.x;
        if (lane >= run[1]) continue;
        const int64_t ray = int64_t(run[0]) + lane;
        const int axis = run[2], rows = axis ? g.width : g.height, columns = axis ? g.height : g.width;
        for (int c = blockIdx.z; c < batch; c += gridDim.z) {
            const T* image = (axis ? turned : images) + c * pixels;
            auto read = [=](int row, int pixel) { return image[int64_t(row) * columns + pixel]; };
            sinograms[c * g.size + ray] =
                joseph::integral(g.start[ray], g.step[ray], g.length[ray], rows, columns, read);
        }
    }
}

template <class T> __global__ void adjoint_kernel(T* images, const T* sinograms, int batch, Geometry<T> g) {
    const int64_t pixels = int64_t(g.height) * g.width, at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= pixels) return;
    const int y = int(at / g.width), x = int(at % g.width);
    for (int c = blockIdx.z * IMAGES; c < batch; c += gridDim.z * IMAGES) {
        const int count = batch - c < IMAGES ? batch - c : IMAGES;
        T sums[IMAGES] = {};
        for (int r = 0; r < g.n_runs; ++r) {
            const int32_t* run = g.runs + 3 * r;
            const int64_t first = run[0];
            auto add = [&](int lane, T weight) {
                const T part = weight * g.length[first + lane];
                for (int b = 0; b < IMAGES; ++b)
                    if (b < count) sums[b] += part * sinograms[(c + b) * g.size + first + lane];
            };
            joseph::rays_at(g.start + first, g.step + first, run[1], run[2] ? x : y, run[2] ? y : x, add);
        }
        for (int b = 0; b < IMAGES; ++b)
            if (b < count) images[(c + b) * pixels + at] = sums[b];
    }
}

template <class T>
Geometry<T> geometry(const T* rays, const int32_t* runs, int n_runs, int views, int bins, int height, int width) {
    const int64_t size = int64_t(views) * bins;
    return {rays, rays + size, rays + 2 * size, runs, n_runs, height, width, size};
}

unsigned at_most(int64_t count, int limit) { return unsigned(count < limit ? count : limit); }

template <class T>
int forward(const T* images, const T* turned, T* sinograms, int batch, Geometry<T> g, int bins, cudaStream_t stream) {
    if (batch == 0 || g.n_runs == 0) return 0;
    const dim3 grid((bins + THREADS - 1) / THREADS, at_most(g.n_runs, 65535), at_most(batch, 65535));
    forward_kernel<T><<<grid, THREADS, 0, stream>>>(images, turned, sinograms, batch, g);
    return int(cudaGetLastError());
}

template <class T> int adjoint(T* images, const T* sinograms, int batch, Geometry<T> g, cudaStream_t stream) {
    const int64_t pixels = int64_t(g.height) * g.width;
    if (batch == 0) return 0;
    const dim3 grid(unsigned((pixels + THREADS - 1) / THREADS), 1, at_most((batch + IMAGES - 1) / IMAGES, 65535));
    adjoint_kernel<T><<<grid, THREADS, 0, stream>>>(images, sinograms, batch, g);
    return int(cudaGetLastError());
}

}  // namespace

// Each returns the error of the launch, 0 for none. Sinograms come in as zeros.
#define INTERFACE(T, NAME)                                                                                             \
    extern "C" int joseph_forward_##NAME(const T* images, const T* turned, T* sinograms, int batch, const T* rays,     \
                                         const int32_t* runs, int n_runs, int views, int bins, int height, int width,  \
                                         void* stream) {                                                               \
        return forward<T>(images, turned, sinograms, batch,                                                            \
                          geometry<T>(rays, runs, n_runs, views, bins, height, width), bins, cudaStream_t(stream));    \
    }                                                                                                                  \
    extern "C" int joseph_adjoint_##NAME(const T* sinograms, T* images, int batch, const T* rays, const int32_t* runs, \
                                         int n_runs, int views, int bins, int height, int width, void* stream) {       \
        return adjoint<T>(images, sinograms, batch, geometry<T>(rays, runs, n_runs, views, bins, height, width),       \
                          cudaStream_t(stream));                                                                       \
    }
INTERFACE(float, float32)
INTERFACE(double, float64)
