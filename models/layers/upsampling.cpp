// Doubling of rows and columns on a CPU, forward and backward; the formulas and the caller stand in upsampling.py.
//
// A plane is one image (N, B) with its channels innermost, or one image (N, C, B). Each row of the result is summed over rows
// into scratch, then over columns. Every element is written once, by one thread, in a fixed order.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

enum Dtype : int64_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

struct Image {  // (N, C, B, rows, columns), strides in elements
    char* data;
    int64_t size[5], stride[5];
};

struct Part {  // rows, then columns: the first position of the result, the first sample of the source, samples of the whole
    int64_t first[2], start[2], whole[2], dtype, threads;
};

struct BFloat16 {
    uint16_t raw;
    operator float() const {
        const uint32_t b = uint32_t(raw) << 16;
        float x;
        std::memcpy(&x, &b, sizeof x);
        return x;
    }
    BFloat16() = default;
    explicit BFloat16(float x) {  // round to nearest even; NaN stays NaN
        uint32_t b;
        std::memcpy(&b, &x, sizeof b);
        raw = x != x ? uint16_t((b >> 16) | 64) : uint16_t((b + 0x7fff + ((b >> 16) & 1)) >> 16);
    }
};

template <class A>
struct Taps {  // the samples around a position, and the share of the second
    int64_t low, high;
    A share;
    Taps(int64_t p, int64_t start, int64_t count, int64_t whole) {
        const int64_t k = p / 2, odd = p % 2;
        low = std::min(std::max<int64_t>(k - 1 + odd - start, 0), count - 1);
        high = std::min(std::max<int64_t>(k + odd - start, 0), count - 1);
        share = A(double((odd ? whole : 2 * whole) - 1 - k) / double(2 * whole - 1));
    }
};

template <class A>
struct Gathered {  // the positions that a sample went to, and its share in each
    int64_t at[4];
    A share[4];
    Gathered(int64_t k, int64_t whole) {
        const int64_t last = 2 * whole - 1, parts[4] = {whole - k, last - k, whole + k, k + 1};
        for (int64_t t = 0; t < 4; ++t) {
            const int64_t p = 2 * k - 1 + t;
            at[t] = std::min(std::max<int64_t>(p, 0), last);
            share[t] = p == at[t] ? A(double(parts[t]) / double(last)) : A(0);
        }
    }
};

// Runs work(from, to, row, scratch) for every row of `to`; `run` values lie side by side in each column.
template <class T, class A, class Work>
void for_rows(const Image& to, const Image& from, int64_t run, int64_t scratch, int64_t threads, Work work) {
    const int64_t *size = to.size, channels = size[1] / run, rows = size[0] * channels * size[2] * size[3];
#ifdef _OPENMP
    const int64_t busy = std::max<int64_t>(rows * size[4] * run / 8192, 1);  // below this a thread is not worth its start
#pragma omp parallel num_threads(int(std::min(threads, busy))) if (threads > 1 && busy > 1)
#endif
    {
        std::vector<A> buffer(scratch);
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (int64_t i = 0; i < rows; ++i) {
            int64_t rest = i / size[3];
            const int64_t b = rest % size[2], c = rest / size[2] % channels, n = rest / size[2] / channels;
            auto plane = [&](const Image& image) {
                return reinterpret_cast<T*>(image.data) + n * image.stride[0] + c * image.stride[1] + b * image.stride[2];
            };
            work(plane(from), plane(to), i % size[3], buffer.data());
        }
    }
}

template <class T, class A>
void forward(const Image& out, const Image& x, const Part& part, int64_t run) {
    const int64_t columns = x.size[4], dense = columns * run;
    std::vector<Taps<A>> across;
    for (int64_t q = 0; q < out.size[4]; ++q) across.emplace_back(part.first[1] + q, part.start[1], columns, part.whole[1]);
    for_rows<T, A>(out, x, run, dense, part.threads, [&](const T* from, T* to, int64_t row, A* buffer) {
        const Taps<A> down(part.first[0] + row, part.start[0], x.size[3], part.whole[0]);
        const T *low = from + down.low * x.stride[3], *high = from + down.high * x.stride[3];
        for (int64_t i = 0; i < dense; ++i) buffer[i] = A(low[i]) + down.share * (A(high[i]) - A(low[i]));
        to += row * out.stride[3];
        for (const Taps<A>& q : across) {
            const A *left = buffer + q.low * run, *right = buffer + q.high * run;
            for (int64_t c = 0; c < run; ++c) to[c] = T(left[c] + q.share * (right[c] - left[c]));
            to += run;
        }
    });
}

template <class T, class A>
void backward(const Image& grad_x, const Image& grad, const Part& part, int64_t run) {
    const int64_t dense = grad.size[4] * run;
    std::vector<Gathered<A>> across;
    for (int64_t k = 0; k < grad_x.size[4]; ++k) across.emplace_back(k, grad_x.size[4]);
    for_rows<T, A>(grad_x, grad, run, dense, part.threads, [&](const T* from, T* to, int64_t row, A* buffer) {
        const Gathered<A> down(row, grad_x.size[3]);
        const T* g[4];
        for (int t = 0; t < 4; ++t) g[t] = from + down.at[t] * grad.stride[3];
        for (int64_t i = 0; i < dense; ++i)
            buffer[i] = down.share[0] * A(g[0][i]) + down.share[1] * A(g[1][i]) + down.share[2] * A(g[2][i]) +
                        down.share[3] * A(g[3][i]);
        to += row * grad_x.stride[3];
        for (const Gathered<A>& k : across) {
            const A* b[4];
            for (int t = 0; t < 4; ++t) b[t] = buffer + k.at[t] * run;
            for (int64_t c = 0; c < run; ++c)
                to[c] = T(k.share[0] * b[0][c] + k.share[1] * b[1][c] + k.share[2] * b[2][c] + k.share[3] * b[3][c]);
            to += run;
        }
    });
}

}  // namespace

// Every row of both images is dense: its columns lie side by side, `run` values each.
#define FOR_DTYPE(CALL, TO, FROM)                                               \
    switch (part->dtype) {                                                      \
        case kFloat32: CALL<float, float>(*TO, *FROM, *part, run); break;       \
        case kFloat64: CALL<double, double>(*TO, *FROM, *part, run); break;     \
        case kFloat16: CALL<_Float16, float>(*TO, *FROM, *part, run); break;    \
        default: CALL<BFloat16, float>(*TO, *FROM, *part, run);                 \
    }

extern "C" void double_forward(const Image* out, const Image* x, const Part* part, int64_t run) {
    FOR_DTYPE(forward, out, x)
}

extern "C" void double_backward(const Image* grad_x, const Image* grad, const Part* part, int64_t run) {
    FOR_DTYPE(backward, grad_x, grad)
}
