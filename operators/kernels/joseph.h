// Joseph's method: a ray goes along the axis it is closest to, one row of pixels at a time, and meets every row between
// two pixels, which share it by their distances. P. M. Joseph, IEEE Trans Med Imaging 1, 192 (1982).
//
// In row k a ray passes pixel start + step k, |step| <= 1; its length from row to row is `length` (mm). For rays closest
// to x, rows are the columns of the image: the image is then transposed, and nothing else changes. Outside, the image is 0.
#pragma once

#ifdef __CUDACC__
#define EVERYWHERE __host__ __device__ __forceinline__
#else
#define EVERYWHERE inline __attribute__((always_inline))
#endif

namespace joseph {

template <class T> EVERYWHERE T clamp(T x, T low, T high) {
    x = x > low ? x : low;
    return x < high ? x : high;
}

// Where a ray meets a row: `upper` of it falls to pixel `index`, the rest to the one before. Index 0 .. columns + 1:
// the image has a pixel of zeros at either side, to which belongs what passes outside.
template <class T> struct Crossing {
    int index;
    T upper;
};

template <class T> EVERYWHERE T position(T start, T step, int row) { return (start + T(1)) + step * T(row); }

template <class T> EVERYWHERE Crossing<T> crossing(T start, T step, int row, int columns) {
    T x = clamp(position(start, step, row), T(0), T(columns + 1));
    int index = int(x);
    return {index, x - T(index)};
}

// The rows [first, last) which a ray meets inside the image, one more at either end for rounding.
struct Range {
    int first, last;
};

template <class T> EVERYWHERE Range rows_met(T start, T step, int rows, int columns) {
    T x = start + T(1), end = T(columns + 1);
    if (step == T(0)) return x > T(0) && x < end ? Range{0, rows} : Range{0, 0};
    T one = -x / step, other = (end - x) / step;
    T enter = one < other ? one : other, leave = one < other ? other : one;
    if (leave < T(0) || enter > T(rows)) return {0, 0};
    return {int(clamp(enter - T(1), T(0), T(rows))), int(clamp(leave + T(2), T(0), T(rows)))};
}

// The integral along one ray; read(row, pixel) of the image, pixel 0 .. columns - 1.
template <class T, class Read> EVERYWHERE T integral(T start, T step, T length, int rows, int columns, Read read) {
    T sum = T(0);
    Range met = rows_met(start, step, rows, columns);
    for (int row = met.first; row < met.last; ++row) {
        Crossing<T> c = crossing(start, step, row, columns);
        T low = c.index > 0 && c.index <= columns ? read(row, c.index - 1) : T(0);
        T high = c.index < columns ? read(row, c.index) : T(0);
        sum += low + c.upper * (high - low);
    }
    return length * sum;
}

// The adjoint at one pixel: add(ray, weight) for every ray of a run that passes within a pixel. The rays of a run are
// neighbours of one view that meet each row in their order, so that a guess by the chord, two secant steps and a short
// walk find the first of them.
template <class T, class Add>
EVERYWHERE void rays_at(const T* start, const T* step, int count, int row, int pixel, Add add) {
    T at = T(pixel + 1), x0 = position(start[0], step[0], row), x1 = position(start[count - 1], step[count - 1], row);
    T sign = x1 < x0 ? T(-1) : T(1);
    if (sign * (x0 - at) >= T(1) || sign * (x1 - at) <= T(-1)) return;
    T guess = x1 == x0 ? T(0) : (at - x0) / (x1 - x0) * T(count - 1);
    int ray = int(clamp(guess, T(0), T(count - 1)));
    for (int i = 0; i < 2 && ray + 1 < count; ++i) {
        T here = position(start[ray], step[ray], row), next = position(start[ray + 1], step[ray + 1], row);
        if (next == here) break;
        ray = int(clamp(T(ray) + (at - here) / (next - here), T(0), T(count - 1)));
    }
    while (ray > 0 && sign * (position(start[ray - 1], step[ray - 1], row) - at) > T(-1)) --ray;
    for (; ray < count; ++ray) {
        T distance = sign * (position(start[ray], step[ray], row) - at);
        if (distance >= T(1)) return;
        if (distance > T(-1)) add(ray, T(1) - (distance < T(0) ? -distance : distance));
    }
}

}  // namespace joseph
