// Quasi-recurrent pooling along bands on a CPU; the formulas stand in loop.py, the caller in cpu.py.
//
// A lane is one output channel of one pixel: its recurrence depends on no other lane. Work is cut into blocks of some
// hundred lanes that lie next to each other in memory. A block's gates are read once, activated into scratch that fits
// the cache, scanned there in one or both directions, and the sum is written once. The backward pass does the same from
// the saved gates, recomputing the states.
//
// Plain C interface, no headers of torch. Vectors are the compiler's own (GCC, Clang), so that the exponentials
// vectorise everywhere. Rounding by a large constant and NaN need strict arithmetic: never build with -ffast-math.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

enum Dtype : int64_t { kFloat32, kFloat64, kFloat16, kBFloat16 };
enum Kind : int64_t { kF, kFo, kIfo };
enum Direction : int64_t { kForward, kBackward, kBoth };
enum Act { kRaw, kTanh, kSigmoid };

struct View {  // strides in elements; lanes has the innermost axis first; band and gate lead to the next band and gate
    char* data;
    int64_t dtype;
    int64_t lanes[4];
    int64_t band;
    int64_t gate;
};

struct Shape {
    int64_t lanes[4];
    int64_t bands, kind, direction, threads;
};

template <class T>
struct Vector {
    typedef T type __attribute__((vector_size(kBytes)));
    static constexpr int width = kBytes / sizeof(T);
};
using FloatV = Vector<float>::type;
using DoubleV = Vector<double>::type;
using IntV = Vector<int32_t>::type;

template <class V, class T>
inline V load(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class V, class T>
inline void store(T* p, V v) {
    std::memcpy(p, &v, sizeof v);
}

template <class To, class From>
inline To bits(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "same size");
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// e^x - 1 for |x| <= 87 with small relative error everywhere: x = n ln 2 + r, the polynomial of Cephes' expf for
// e^r - 1, and 2^n (e^r - 1) + (2^n - 1). Adding and subtracting 1.5 * 2^23 rounds to an integer, whose low bits make
// 2^n.
inline FloatV expm1(FloatV x) {
    const FloatV shifted = x * 1.44269504088896341f + 12582912.0f;
    const FloatV n = shifted - 12582912.0f;
    FloatV r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    FloatV p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r;
    const FloatV power = bits<FloatV>((bits<IntV>(shifted) << 23) + 0x3f800000);
    return p * power + (power - 1.0f);
}

inline FloatV clamp(FloatV x, float limit) {  // written so that NaN passes
    const FloatV high = FloatV{} + limit, low = FloatV{} - limit;
    x = x > high ? high : x;
    return x < low ? low : x;
}

inline FloatV sigmoid(FloatV x) { return 1.0f / (expm1(clamp(-x, 87.0f)) + 2.0f); }

inline FloatV tanh(FloatV x) {
    const FloatV e = expm1(clamp(x + x, 20.0f));
    return e / (e + 2.0f);
}

inline DoubleV sigmoid(DoubleV x) {
    for (int k = 0; k < Vector<double>::width; ++k) x[k] = 1.0 / (1.0 + std::exp(-x[k]));
    return x;
}

inline DoubleV tanh(DoubleV x) {
    for (int k = 0; k < Vector<double>::width; ++k) x[k] = std::tanh(x[k]);
    return x;
}

template <class V>
inline V activate(V x, Act act) {
    return act == kTanh ? tanh(x) : act == kSigmoid ? sigmoid(x) : x;
}

struct BFloat16 {
    uint16_t raw;
    operator float() const { return bits<float>(uint32_t(raw) << 16); }
    BFloat16() = default;
    explicit BFloat16(float x) {  // round to nearest even; NaN stays NaN
        const uint32_t b = bits<uint32_t>(x);
        raw = x != x ? uint16_t((b >> 16) | 64) : uint16_t((b + 0x7fff + ((b >> 16) & 1)) >> 16);
    }
};

// One block: `rows` x `columns` lanes, columns along the innermost axis.
struct Block {
    int64_t index[4];
    int64_t rows, columns;
    int64_t lanes() const { return rows * columns; }
    int64_t offset(const View& view) const {
        int64_t sum = 0;
        for (int axis = 0; axis < 4; ++axis) sum += index[axis] * view.lanes[axis];
        return sum;
    }
};

template <class T, class S>
void gather(T* to, const S* from, const View& view, const Block& block) {
    const int64_t step = view.lanes[0];
    for (int64_t r = 0; r < block.rows; ++r, from += view.lanes[1], to += block.columns) {
        if (step == 1) {
            for (int64_t c = 0; c < block.columns; ++c) to[c] = T(from[c]);
        } else {
            for (int64_t c = 0; c < block.columns; ++c) to[c] = T(from[c * step]);
        }
    }
}

template <class T, class S>
void scatter(S* to, const T* from, const View& view, const Block& block) {
    const int64_t step = view.lanes[0];
    for (int64_t r = 0; r < block.rows; ++r, to += view.lanes[1], from += block.columns) {
        if (step == 1) {
            for (int64_t c = 0; c < block.columns; ++c) to[c] = S(from[c]);
        } else {
            for (int64_t c = 0; c < block.columns; ++c) to[c * step] = S(from[c]);
        }
    }
}

// One band of a block into scratch, activated. `offset` counts elements of the view; the next band is fetched ahead,
// because it lies a whole image further on, where no processor looks by itself.
template <Act act, class T>
void read_row(T* to, const View& view, int64_t offset, const Block& block) {
    using V = typename Vector<T>::type;
    constexpr int width = Vector<T>::width;
    const bool same = view.dtype == (std::is_same<T, float>::value ? kFloat32 : kFloat64);
    if (same && view.lanes[0] == 1 && block.columns % width == 0) {
        const T* from = reinterpret_cast<const T*>(view.data) + offset;
        const int64_t rows = block.rows, columns = block.columns, down = view.lanes[1];
        const uintptr_t ahead = view.band * sizeof(T);
        for (int64_t r = 0; r < rows; ++r, from += down, to += columns)
            for (int64_t c = 0; c < columns; c += width) {
                __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from + c) + ahead));
                store(to + c, activate(load<V>(from + c), act));
            }
        return;
    }
    switch (view.dtype) {
        case kFloat32: gather(to, reinterpret_cast<const float*>(view.data) + offset, view, block); break;
        case kFloat64: gather(to, reinterpret_cast<const double*>(view.data) + offset, view, block); break;
        case kFloat16: gather(to, reinterpret_cast<const _Float16*>(view.data) + offset, view, block); break;
        default: gather(to, reinterpret_cast<const BFloat16*>(view.data) + offset, view, block);
    }
    if (act != kRaw)
        for (int64_t c = 0; c < block.lanes(); c += width) store(to + c, activate(load<V>(to + c), act));
}

// One band of a block from scratch; what lies `ahead` elements further is written next, and is fetched for it.
template <class T>
void write_row(const T* from, const View& view, int64_t offset, int64_t ahead, const Block& block) {
    if (view.lanes[0] == 1) {
        constexpr int sizes[] = {4, 8, 2, 2};
        const int64_t size = sizes[view.dtype], rows = block.rows, bytes = block.columns * size;
        const uintptr_t start = reinterpret_cast<uintptr_t>(view.data) + (offset + ahead) * size;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t b = 0; b < bytes; b += 64)
                __builtin_prefetch(reinterpret_cast<const void*>(start + r * view.lanes[1] * size + b), 1);
    }
    switch (view.dtype) {
        case kFloat32: scatter(reinterpret_cast<float*>(view.data) + offset, from, view, block); break;
        case kFloat64: scatter(reinterpret_cast<double*>(view.data) + offset, from, view, block); break;
        case kFloat16: scatter(reinterpret_cast<_Float16*>(view.data) + offset, from, view, block); break;
        default: scatter(reinterpret_cast<BFloat16*>(view.data) + offset, from, view, block);
    }
}

// The scratch of one block: arrays of bands x stride values.
template <class T>
struct Scratch {
    T* data;
    int64_t bands, stride;
    T* row(int64_t array, int64_t band) const { return data + (array * bands + band) * stride; }
};

int gate_count(const Shape& shape) { return 1 + (shape.kind + 1) * (shape.direction == kBoth ? 2 : 1); }

// The arrays of scratch in which the gates of direction k lie, of n directions: 0 holds z.
struct Gates {
    int f, o, i;
    Gates(int k, int n) : f(1 + k), o(1 + n + k), i(1 + 2 * n + k) {}
};

template <class T>
void read_gates(const Scratch<T>& s, const Shape& shape, const View& gates, const Block& block) {
    const int64_t start = block.offset(gates);
    const int count = gate_count(shape);
    for (int64_t t = 0; t < shape.bands; ++t) {
        const int64_t offset = start + t * gates.band;
        read_row<kTanh>(s.row(0, t), gates, offset, block);
        for (int k = 1; k < count; ++k) read_row<kSigmoid>(s.row(k, t), gates, offset + k * gates.gate, block);
    }
}

// Scans direction k of n. Every direction but the last leaves its h in the place of its f; the last adds up and writes.
template <class T, Kind kind>
void scan(const Scratch<T>& s, const Shape& shape, int k, int n, bool reverse, T* state, T* row, const View& out,
          const View* skip, const Block& block) {
    using V = typename Vector<T>::type;
    constexpr int width = Vector<T>::width;
    const Gates g(k, n);
    const int64_t lanes = block.lanes(), from = block.offset(out), from_skip = skip ? block.offset(*skip) : 0;
    const bool last = k == n - 1;
    std::fill(state, state + s.stride, T(0));
    for (int64_t step = 0; step < shape.bands; ++step) {
        const int64_t t = reverse ? shape.bands - 1 - step : step;
        if (last && skip) read_row<kRaw>(row, *skip, from_skip + t * skip->band, block);
        const T *z = s.row(0, t), *f = s.row(g.f, t), *o = s.row(g.o, t), *i = s.row(g.i, t), *other = s.row(1, t);
        T* to = last ? row : s.row(g.f, t);
        for (int64_t c = 0; c < lanes; c += width) {
            const V zv = load<V>(z + c), fv = load<V>(f + c);
            const V x = (kind == kIfo ? load<V>(i + c) : T(1) - fv) * zv;
            const V h = fv * load<V>(state + c) + x;
            store(state + c, h);
            V y = kind == kF ? h : load<V>(o + c) * h;
            if (last && skip) y += load<V>(row + c);
            if (last && n == 2) y += load<V>(other + c);
            store(to + c, y);
        }
        if (last) write_row(row, out, from + t * out.band, reverse ? -out.band : out.band, block);
    }
}

template <class T, Kind kind>
void forward_block(const Scratch<T>& s, T* rows, const Shape& shape, const View& out, const View& gates,
                   const View* skip, const Block& block) {
    const int n = shape.direction == kBoth ? 2 : 1;
    read_gates(s, shape, gates, block);
    for (int k = 0; k < n; ++k)
        scan<T, kind>(s, shape, k, n, n == 2 ? k == 1 : shape.direction == kBackward, rows, rows + s.stride, out, skip,
                      block);
}

// The gradient of direction k of n: gate arrays are replaced by gradients of the raw gates, that of z adds to `grad_z`.
// With e the gradient that reaches c_t: do = G c, e = G o + (f e of the step after), df = e (c_{t-1} - z) or e c_{t-1},
// di = e z, dz = e (1 - f) or e i.
template <class T, Kind kind>
void scan_gradient(const Scratch<T>& s, const Shape& shape, int k, int n, bool reverse, T* rows, int grad, int states,
                   int grad_z, const Block& block) {
    using V = typename Vector<T>::type;
    constexpr int width = Vector<T>::width;
    const Gates g(k, n);
    const int64_t lanes = block.lanes();
    T *zero = rows, *carry = rows + s.stride;
    std::fill(rows, rows + 2 * s.stride, T(0));
    for (int64_t step = 0; step < shape.bands; ++step) {
        const int64_t t = reverse ? shape.bands - 1 - step : step, before = reverse ? t + 1 : t - 1;
        const T *z = s.row(0, t), *f = s.row(g.f, t), *i = s.row(g.i, t), *c0 = step ? s.row(states, before) : zero;
        T* c1 = s.row(states, t);
        for (int64_t c = 0; c < lanes; c += width) {
            const V fv = load<V>(f + c);
            const V x = (kind == kIfo ? load<V>(i + c) : T(1) - fv) * load<V>(z + c);
            store(c1 + c, V(fv * load<V>(c0 + c) + x));
        }
    }
    for (int64_t step = shape.bands - 1; step >= 0; --step) {
        const int64_t t = reverse ? shape.bands - 1 - step : step, before = reverse ? t + 1 : t - 1;
        const T *z = s.row(0, t), *dy = s.row(grad, t), *c1 = s.row(states, t);
        const T* c0 = step ? s.row(states, before) : zero;
        T *f = s.row(g.f, t), *o = s.row(g.o, t), *i = s.row(g.i, t), *dz = s.row(grad_z, t);
        for (int64_t c = 0; c < lanes; c += width) {
            const V zv = load<V>(z + c), fv = load<V>(f + c), was = load<V>(c0 + c);
            V e = load<V>(dy + c);
            if (kind != kF) {
                const V ov = load<V>(o + c);
                store(o + c, V(e * load<V>(c1 + c) * (ov * (T(1) - ov))));
                e = e * ov;
            }
            e += load<V>(carry + c);
            store(carry + c, V(fv * e));
            V into_z;
            if (kind == kIfo) {
                const V iv = load<V>(i + c);
                into_z = e * iv;
                store(f + c, V(e * was * (fv * (T(1) - fv))));
                store(i + c, V(e * zv * (iv * (T(1) - iv))));
            } else {
                into_z = e * (T(1) - fv);
                store(f + c, V((was - zv) * fv * into_z));
            }
            store(dz + c, V(k ? load<V>(dz + c) + into_z : into_z));
        }
    }
}

template <class T, Kind kind>
void backward_block(const Scratch<T>& s, T* rows, const Shape& shape, const View& grad_gates, const View& grad,
                    const View& gates, const Block& block) {
    using V = typename Vector<T>::type;
    const int n = shape.direction == kBoth ? 2 : 1, count = gate_count(shape);
    const int64_t from = block.offset(grad), to = block.offset(grad_gates);
    read_gates(s, shape, gates, block);
    for (int64_t t = 0; t < shape.bands; ++t) read_row<kRaw>(s.row(count, t), grad, from + t * grad.band, block);
    for (int k = 0; k < n; ++k)
        scan_gradient<T, kind>(s, shape, k, n, n == 2 ? k == 1 : shape.direction == kBackward, rows, count, count + 1,
                               count + 2, block);
    for (int64_t t = 0; t < shape.bands; ++t) {
        T *z = s.row(0, t), *dz = s.row(count + 2, t);
        for (int64_t c = 0; c < block.lanes(); c += Vector<T>::width) {
            const V zv = load<V>(z + c);
            store(z + c, V(load<V>(dz + c) * (T(1) - zv) * (T(1) + zv)));
        }
        for (int k = 0; k < count; ++k)
            write_row(s.row(k, t), grad_gates, to + t * grad_gates.band + k * grad_gates.gate, grad_gates.band,
                      block);
    }
}

// One buffer per thread, kept between calls: fresh pages cost more than the work of a small call.
void* scratch_bytes(size_t size) {
    struct Buffer {
        void* data = nullptr;
        size_t size = 0;
        ~Buffer() { std::free(data); }
    };
    static thread_local Buffer buffer;
    if (buffer.size < size) {
        std::free(buffer.data);
        buffer.data = nullptr;
        buffer.size = 0;
        if (posix_memalign(&buffer.data, 64, size)) return nullptr;
        std::memset(buffer.data, 0, size);  // unused lanes of the last vector are computed too: no denormals there
        buffer.size = size;
    }
    return buffer.data;
}

// Cuts the lanes into blocks and runs `work(scratch, rows, block)` on each; returns 1 when memory ran out.
template <class T, class Work>
int for_blocks(const Shape& shape, int arrays, Work work) {
    constexpr int64_t kBudget = 320 << 10;  // bytes of scratch: below any recent second-level cache
    const int64_t fit = kBudget / (int64_t(sizeof(T)) * arrays * shape.bands) / 32 * 32;
    const int64_t lanes = std::min<int64_t>(std::max<int64_t>(fit, 32), 256);
    const int64_t columns = std::min(shape.lanes[0], lanes);
    const int64_t rows = std::min(shape.lanes[1], std::max<int64_t>(lanes / columns, 1));
    const int64_t width = Vector<T>::width, stride = (rows * columns + width - 1) / width * width;
    const int64_t across = (shape.lanes[0] + columns - 1) / columns, down = (shape.lanes[1] + rows - 1) / rows;
    const int64_t blocks = across * down * shape.lanes[2] * shape.lanes[3];
    const size_t size = sizeof(T) * stride * (arrays * shape.bands + 2);
    int failed = 0;
#ifdef _OPENMP
    const int64_t busy = rows * columns * blocks * shape.bands / 8192;  // below this a thread is not worth its start
    const int threads = int(std::max<int64_t>(std::min(std::min(shape.threads, blocks), busy), 1));
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
    {
        T* data = static_cast<T*>(scratch_bytes(size));
        if (!data) {
#ifdef _OPENMP
#pragma omp atomic write
#endif
            failed = 1;
        }
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (int64_t b = 0; b < blocks; ++b) {
            if (!data) continue;
            Block block;
            int64_t rest = b;
            block.index[0] = rest % across * columns, rest /= across;
            block.index[1] = rest % down * rows, rest /= down;
            block.index[2] = rest % shape.lanes[2];
            block.index[3] = rest / shape.lanes[2];
            block.columns = std::min(columns, shape.lanes[0] - block.index[0]);
            block.rows = std::min(rows, shape.lanes[1] - block.index[1]);
            work(Scratch<T>{data, shape.bands, stride}, data + arrays * shape.bands * stride, block);
        }
    }
    return failed;
}

template <class T, Kind kind>
int forward(const Shape& shape, const View& out, const View& gates, const View* skip) {
    return for_blocks<T>(shape, gate_count(shape), [&](const Scratch<T>& s, T* rows, const Block& block) {
        forward_block<T, kind>(s, rows, shape, out, gates, skip, block);
    });
}

template <class T, Kind kind>
int backward(const Shape& shape, const View& grad_gates, const View& grad, const View& gates) {
    return for_blocks<T>(shape, gate_count(shape) + 3, [&](const Scratch<T>& s, T* rows, const Block& block) {
        backward_block<T, kind>(s, rows, shape, grad_gates, grad, gates, block);
    });
}

template <class T>
int forward(const Shape& shape, const View& out, const View& gates, const View* skip) {
    return shape.kind == kF    ? forward<T, kF>(shape, out, gates, skip)
           : shape.kind == kFo ? forward<T, kFo>(shape, out, gates, skip)
                               : forward<T, kIfo>(shape, out, gates, skip);
}

template <class T>
int backward(const Shape& shape, const View& grad_gates, const View& grad, const View& gates) {
    return shape.kind == kF    ? backward<T, kF>(shape, grad_gates, grad, gates)
           : shape.kind == kFo ? backward<T, kFo>(shape, grad_gates, grad, gates)
                               : backward<T, kIfo>(shape, grad_gates, grad, gates);
}

}  // namespace

// Both compute in double when the gates are double, else in float, and return 0, or 1 when memory ran out.
extern "C" int pooling_forward(const Shape* shape, const View* out, const View* gates, const View* skip) {
    return gates->dtype == kFloat64 ? forward<double>(*shape, *out, *gates, skip)
                                    : forward<float>(*shape, *out, *gates, skip);
}

extern "C" int pooling_backward(const Shape* shape, const View* grad_gates, const View* grad, const View* gates) {
    return gates->dtype == kFloat64 ? backward<double>(*shape, *grad_gates, *grad, *gates)
                                    : backward<float>(*shape, *grad_gates, *grad, *gates);
}
