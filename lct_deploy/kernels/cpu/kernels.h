// The arithmetic of the operators, without onnxruntime: pool a piece of X, compute gates, scale a piece.
//
// One source for all processors: vectors are the compiler's own, and each function is compiled for several
// instruction sets, of which choose_kernels() takes the best that the processor has.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#define LCT_INLINE inline __attribute__((always_inline))
#if defined(__GNUC__) && !defined(__clang__)
#define LCT_UNROLL _Pragma("GCC unroll 8")
#else
#define LCT_UNROLL _Pragma("unroll")
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bytes are taken out of words by their place");

namespace {

// ---------------------------------------------------------------------------------------------------
// Layout: where channel c of pixel p of a sample lies.

struct Extent {
    size_t samples, channels, pixels;
    size_t block;  // 0: channels last; 1: channels first; 8, 16: channels in blocks of that size, NCHWc

    bool channels_last() const { return block == 0; }
    size_t stride() const { return channels_last() ? channels : block; }  // from pixel to pixel
    size_t sample_size() const { return channels * pixels; }
    size_t offset(size_t sample, size_t channel, size_t pixel) const {
        const size_t run = stride();  // channels that lie side by side
        return sample * sample_size() + channel / run * run * pixels + pixel * run + channel % run;
    }
};

struct Piece {
    size_t sample, channel, channels, pixel, pixels;
    size_t pixel_index;  // which of the sample's pixel ranges this is
};

// How the samples are cut into pieces, one task each.
struct Cut {
    Extent extent;
    size_t channels, pixels;  // of a piece; the last of a row may have fewer

    size_t channel_pieces() const { return (extent.channels + channels - 1) / channels; }
    size_t pixel_pieces() const { return (extent.pixels + pixels - 1) / pixels; }
    size_t count() const { return extent.samples * channel_pieces() * pixel_pieces(); }
    Piece piece(size_t index) const {
        const size_t p = index % pixel_pieces(), rest = index / pixel_pieces();
        const size_t channel = rest % channel_pieces() * channels, pixel = p * pixels;
        const size_t channels_here = std::min(channels, extent.channels - channel);
        const size_t pixels_here = std::min(pixels, extent.pixels - pixel);
        return {rest / channel_pieces(), channel, channels_here, pixel, pixels_here, p};
    }
};

// ---------------------------------------------------------------------------------------------------
// Vectors: N elements side by side; one element is a plain number.

template <class T, int N> struct VectorOf { typedef T type __attribute__((vector_size(N * sizeof(T)))); };
template <class T> struct VectorOf<T, 1> { typedef T type; };
template <class T, int N> using Vector = typename VectorOf<T, N>::type;

// By reference, for a vector passed by value has another ABI in each instruction set.
template <class V, class T> LCT_INLINE void load(V& vector, const T* from) {
    std::memcpy(&vector, from, sizeof vector);
}
template <class T, class V> LCT_INLINE void store(T* to, const V& vector) {
    std::memcpy(to, &vector, sizeof vector);
}
// Written out: compilers make one conversion of the loop, but several of the vector's own.
template <class V, class T> LCT_INLINE void widen(V& vector, const T* from) {
    if constexpr (std::is_arithmetic_v<V>) {
        vector = *from;
    } else {
        for (size_t i = 0; i < sizeof vector / sizeof vector[0]; ++i) {
            vector[i] = from[i];
        }
    }
}
template <class To, class From> LCT_INLINE void reinterpret(To& to, const From& from) {
    static_assert(sizeof to == sizeof from);
    std::memcpy(&to, &from, sizeof to);
}

// A float of 2²³ to 2²⁴ has the integer in its low bits. So a byte becomes a float by these bits and
// one exact subtraction, and adding 1.5 · 2²³ rounds a float below 2²² to an integer, ties to even.
constexpr float kIntegers = 8388608.0F;  // 2²³
constexpr uint32_t kIntegersBits = 0x4B000000;
constexpr float kRounder = 12582912.0F;  // 1.5 · 2²³
constexpr uint32_t kRounderBits = 0x4B400000;

// ---------------------------------------------------------------------------------------------------
// Tiles: the inner loops, over `pixels` pixels of N channels. W is how many floats a register holds.

// In double: its sums of 10⁵ floats err less than the floats themselves.
template <int N, int W>
LCT_INLINE void pool_tile(const float* x, size_t stride, size_t pixels, double* sums) {
    constexpr int lanes = std::max(1, std::min(N, W / 2));
    Vector<double, lanes> total[N / lanes] = {};
    for (size_t p = 0; p < pixels; ++p, x += stride) {
        LCT_UNROLL for (int i = 0; i < N / lanes; ++i) {
            Vector<double, lanes> wide = {};
            widen(wide, x + i * lanes);
            total[i] += wide;
        }
    }
    double flat[N];
    reinterpret(flat, total);
    for (int i = 0; i < N; ++i) {
        sums[i] += flat[i];
    }
}

// Exact: in 16 bits for as many pixels as these hold, then in double. The bytes at even and those at odd
// places are summed apart, so that no byte changes its place.
template <int N, int W>
LCT_INLINE void pool_tile(const uint8_t* x, size_t stride, size_t pixels, double* sums) {
    constexpr size_t most = 257;  // 257 · 255 = 65535
    constexpr int parts = std::min(N, 2), lanes = N / parts;
    while (pixels > 0) {
        const size_t count = std::min(pixels, most);
        Vector<uint16_t, lanes> total[parts] = {};
        for (size_t p = 0; p < count; ++p, x += stride) {
            if constexpr (N == 1) {
                total[0] += *x;
            } else {
                Vector<uint16_t, lanes> pairs;
                load(pairs, x);
                total[0] += pairs & 0xFF;
                total[1] += pairs >> 8;
            }
        }
        uint16_t apart[parts][lanes], inorder[N];
        reinterpret(apart, total);
        for (int i = 0; i < N; ++i) {
            inorder[i] = apart[i % parts][i / parts];
        }
        for (int i = 0; i < N; ++i) {
            sums[i] += inorder[i];
        }
        pixels -= count;
    }
}

struct FloatScale {
    double unit = 1.0;
};

template <int N, int W>
LCT_INLINE void scale_tile(const float* x, const float* identity, float* y, size_t stride, size_t pixels,
                           const float* gates, const FloatScale&) {
    constexpr int lanes = std::min(N, W);
    using F = Vector<float, lanes>;
    F gate[N / lanes];
    std::memcpy(gate, gates, sizeof gate);
    for (size_t at = 0; at < pixels * stride; at += stride) {
        LCT_UNROLL for (int i = 0; i < N / lanes; ++i) {
            F value, other;
            load(value, x + at + i * lanes);
            load(other, identity + at + i * lanes);
            value = value * gate[i] + other;
            value = value < F{} ? F{} : value;  // NaN stays
            store(y + at + i * lanes, value);
        }
    }
}

struct Uint8Scale {
    double unit;        // what a step of X is worth
    float x, identity;  // scales over that of Y
    int x_zero, identity_zero, y_zero;
    int fraction;  // bits of it that words have for scale_tile_by_words; none where they cannot hold the sums
};

// The bits of fraction that 16 leave to a sum of 255 steps each of X, gated, and of identity. Two products, two
// factors and the constant are rounded to them: sums err by 2.5 in the last of them, 1/25 of a step of Y, at most.
inline int fraction_bits(float x, float identity) {
    const float worth = x + identity;
    return worth <= 2.0F ? 6 : worth <= 4.0F ? 5 : 0;
}

// (a · b + 2¹⁴) / 2¹⁵, rounded down: one instruction where there is one, which compilers find in this form.
template <int N, class S> LCT_INLINE void multiply_high(S& product, const S& a, const S& b) {
    int16_t x[N], y[N], high[N];
    std::memcpy(x, &a, sizeof x);
    std::memcpy(y, &b, sizeof y);
    for (int i = 0; i < N; ++i) {
        high[i] = static_cast<int16_t>(((x[i] * y[i] >> 14) + 1) >> 1);
    }
    std::memcpy(&product, high, sizeof high);
}

// The nearest word, ties to even; NaN too has a place.
template <class I, class F> LCT_INLINE void to_words(I& words, const F& values) {
    const F least = F{} - 32767.0F, most = F{} + 32767.0F;
    F within = values > least ? values : least;
    within = within < most ? within : most;
    reinterpret(words, F(within + kRounder));
    words -= static_cast<int32_t>(kRounderBits);
}

// As scale_tile below, in fixed point: bytes at even and those at odd places are words with seven bits of
// fraction, and all that does not depend on the pixel is one constant.
template <int N, int W>
LCT_INLINE void scale_tile_by_words(const uint8_t* x, const uint8_t* identity, uint8_t* y, size_t stride,
                                    size_t pixels, const float* gates, const Uint8Scale& scale) {
    constexpr int parts = std::min(N, 2), lanes = N / parts, floats = std::min(N, W);
    using U = Vector<uint16_t, lanes>;
    using S = Vector<int16_t, lanes>;
    using F = Vector<float, floats>;
    using I = Vector<int32_t, floats>;
    const float one = static_cast<float>(256 << scale.fraction);
    int32_t other;
    to_words(other, scale.identity * one);
    int32_t products[N], sums[N];  // this loop is run for every tile: it too works on vectors
    for (int i = 0; i < N; i += floats) {
        F gate;
        I product;
        load(gate, gates + i);
        to_words(product, F(gate * (scale.x * one)));
        store(products + i, product);
        const I zero = (product * scale.x_zero + (other * scale.identity_zero + 128)) >> 8;
        store(sums + i, I((1 << (scale.fraction - 1)) - zero));
    }
    int16_t factors[parts][lanes], constants[parts][lanes];
    for (int i = 0; i < N; ++i) {
        factors[i % parts][i / parts] = static_cast<int16_t>(products[i]);
        constants[i % parts][i / parts] = static_cast<int16_t>(sums[i]);
    }
    S factor[parts], constant[parts];
    reinterpret(factor, factors);
    reinterpret(constant, constants);
    const S identity_factor = S{} + static_cast<int16_t>(other);
    const S zero = {}, top = zero + static_cast<int16_t>(255 - scale.y_zero);
    const U y_zeros = U{} + static_cast<uint16_t>(scale.y_zero * 0x0101);
    for (size_t at = 0; at < pixels * stride; at += stride) {
        U x_bytes = {}, identity_bytes = {}, y_bytes = y_zeros;
        std::memcpy(&x_bytes, x + at, N);
        std::memcpy(&identity_bytes, identity + at, N);
        LCT_UNROLL for (int k = 0; k < parts; ++k) {
            S value, addend;
            reinterpret(value, U((k == 0 ? x_bytes << 7 : x_bytes >> 1) & 0x7F80));
            reinterpret(addend, U((k == 0 ? identity_bytes << 7 : identity_bytes >> 1) & 0x7F80));
            multiply_high<lanes>(value, value, factor[k]);
            multiply_high<lanes>(addend, addend, identity_factor);
            S sum = (value + constant[k] + addend) >> scale.fraction;
            sum = sum > zero ? sum : zero;
            sum = sum < top ? sum : top;
            y_bytes += U(sum) << (8 * k);
        }
        std::memcpy(y + at, &y_bytes, N);
    }
}

// Four bytes are one lane of 32 bits: part k of all lanes, the channels k, k + 4, k + 8 …, is one vector.
template <int N, int W>
LCT_INLINE void scale_tile(const uint8_t* x, const uint8_t* identity, uint8_t* y, size_t stride,
                           size_t pixels, const float* gates, const Uint8Scale& scale) {
    if (scale.fraction > 0) {
        scale_tile_by_words<N, W>(x, identity, y, stride, pixels, gates, scale);
        return;
    }
    constexpr int parts = std::min(N, 4), lanes = N / parts;
    using F = Vector<float, lanes>;
    using I = Vector<int32_t, lanes>;
    using U = Vector<uint32_t, lanes>;
    float apart[parts][lanes];
    for (int i = 0; i < N; ++i) {
        apart[i % parts][i / parts] = gates[i] * scale.x;
    }
    F gate[parts];
    reinterpret(gate, apart);
    const F x_zero = F{} + (kIntegers + static_cast<float>(scale.x_zero));
    const F identity_zero = F{} + (kIntegers + static_cast<float>(scale.identity_zero));
    const I zero = I{} + static_cast<int32_t>(kRounderBits), top = zero + (255 - scale.y_zero);
    const uint32_t everywhere = 0x01010101;
    const uint32_t shift = (static_cast<uint32_t>(scale.y_zero) - kRounderBits) * everywhere;
    for (size_t at = 0; at < pixels * stride; at += stride) {
        U x_bytes = {}, identity_bytes = {}, y_bytes = U{} + shift;
        std::memcpy(&x_bytes, x + at, N);
        std::memcpy(&identity_bytes, identity + at, N);
        LCT_UNROLL for (int k = 0; k < parts; ++k) {
            F value, other;
            reinterpret(value, U((x_bytes >> (8 * k) & 0xFF) | kIntegersBits));
            reinterpret(other, U((identity_bytes >> (8 * k) & 0xFF) | kIntegersBits));
            value = (value - x_zero) * gate[k] + (other - identity_zero) * scale.identity;
            I bits;  // as integers, for positive floats have the order of their bits
            reinterpret(bits, F(value + kRounder));
            bits = bits > zero ? bits : zero;
            bits = bits < top ? bits : top;
            y_bytes += U(bits) << (8 * k);
        }
        std::memcpy(y + at, &y_bytes, N);
    }
}

// ---------------------------------------------------------------------------------------------------
// Runs: channels that lie side by side, `stride` elements from pixel to pixel, cut into tiles.

template <class T, int W> struct PoolRun {
    static constexpr size_t element = sizeof(T);
    const T* x;
    double* sums;  // of the run's channels

    template <int N> LCT_INLINE void columns(size_t at, size_t stride, size_t pixels, size_t channel) const {
        pool_tile<N, W>(x + at, stride, pixels, sums + channel);
    }
    template <int N> LCT_INLINE void repeated(size_t at, size_t rows, size_t channels) const {
        double wide[N] = {};
        pool_tile<N, W>(x + at, N, rows, wide);
        for (size_t half = N / 2; half >= channels; half /= 2) {
            for (size_t i = 0; i < half; ++i) {
                wide[i] += wide[half + i];
            }
        }
        for (size_t c = 0; c < channels; ++c) {
            sums[c] += wide[c];
        }
    }
};

template <class T, int W, class Scale> struct ScaleRun {
    static constexpr size_t element = sizeof(T);
    const T* x;
    const T* identity;
    T* y;
    const float* gates;
    const Scale& scale;

    template <int N> LCT_INLINE void columns(size_t at, size_t stride, size_t pixels, size_t channel) const {
        scale_tile<N, W>(x + at, identity + at, y + at, stride, pixels, gates + channel, scale);
    }
    template <int N> LCT_INLINE void repeated(size_t at, size_t rows, size_t channels) const {
        float wide[N];
        std::copy_n(gates, channels, wide);
        for (size_t known = channels; known < N; known *= 2) {
            std::memcpy(wide + known, wide, known * sizeof(float));
        }
        scale_tile<N, W>(x + at, identity + at, y + at, N, rows, wide, scale);
    }
};

// Where pixels follow upon each other, a tile holds several: N / channels, a power of two.
template <int N, class Run>
LCT_INLINE void take_rows(const Run& run, size_t channels, size_t& at, size_t& pixels) {
    const size_t rows = N % channels == 0 ? pixels / (N / channels) : 0;
    if (rows > 0) {
        run.template repeated<N>(at, rows, channels);
        at += rows * N;
        pixels -= rows * (N / channels);
    }
}

template <int N, class Run>
LCT_INLINE void take_columns(const Run& run, size_t channels, size_t stride, size_t at, size_t pixels,
                             size_t& channel) {
    for (; channel + N <= channels; channel += N) {
        run.template columns<N>(at + channel, stride, pixels, channel);
    }
}

constexpr size_t kPixelsLeast = 64, kPixelsBytes = 32 * 1024;  // between a tile's beginnings, which cost

template <int W, class Run>
LCT_INLINE void take_run(const Run& run, size_t channels, size_t stride, size_t pixels) {
    size_t at = 0, channel = 0;
    if (channels == stride) {
        take_rows<4 * W>(run, channels, at, pixels);
        take_rows<W>(run, channels, at, pixels);
    }
    // All tiles of some pixels, then of the next: side by side they share what is fetched ahead.
    const size_t most = std::max(kPixelsLeast, kPixelsBytes / (stride * Run::element));
    while (pixels > 0) {
        const size_t count = std::min(pixels, most);
        channel = 0;
        take_columns<4 * W>(run, channels, stride, at, count, channel);
        take_columns<W>(run, channels, stride, at, count, channel);
        take_columns<4>(run, channels, stride, at, count, channel);
        take_columns<1>(run, channels, stride, at, count, channel);
        pixels -= count;
        at += count * stride;
    }
}

// ---------------------------------------------------------------------------------------------------
// A piece's three steps.

template <class T, int W>
LCT_INLINE void pool_piece(const Extent& extent, const Piece& piece, const T* x, double* sums) {
    const size_t stride = extent.stride(), end = piece.channel + piece.channels;
    for (size_t c = piece.channel, count = 0; c < end; c += count) {
        count = std::min(stride, end - c);
        const PoolRun<T, W> run{x + extent.offset(piece.sample, c, piece.pixel), sums + c};
        take_run<W>(run, count, stride, piece.pixels);
    }
}

template <class T, int W, class Scale>
LCT_INLINE void scale_piece(const Extent& extent, const Piece& piece, const T* x, const T* identity, T* y,
                            const float* gates, const Scale& scale) {
    const size_t stride = extent.stride(), end = piece.channel + piece.channels;
    for (size_t c = piece.channel, count = 0; c < end; c += count) {
        count = std::min(stride, end - c);
        const size_t at = extent.offset(piece.sample, c, piece.pixel);
        take_run<W>(ScaleRun<T, W, Scale>{x + at, identity + at, y + at, gates + c, scale}, count, stride,
                    piece.pixels);
    }
}

struct GateParameters {
    const float* w;
    const float* b;
    size_t group;  // channels of a group
    double epsilon;
    double factor;  // from sums to means
};

// σ(a) in place, for any a: exp(−a) by its series around the nearest power of two.
template <int N> LCT_INLINE void sigmoid(float* values) {
    using F = Vector<float, N>;
    const F low = F{} - 87.0F, high = F{} + 88.0F;  // exp of these is neither subnormal nor infinite
    F x;
    load(x, values);
    x = -x;
    x = x < low ? low : x;
    x = x > high ? high : x;
    const F rounded = x * 1.44269504F + kRounder;
    const F power = rounded - kRounder;
    const F r = (x - power * 0.693359375F) + power * 2.12194440e-4F;  // ln 2 in two parts
    F series = r * (1.0F / 720) + 1.0F / 120;
    series = series * r + 1.0F / 24;
    series = series * r + 1.0F / 6;
    series = series * r + 0.5F;
    series = series * r + 1.0F;
    series = series * r + 1.0F;
    Vector<uint32_t, N> bits;
    std::memcpy(&bits, &rounded, sizeof bits);
    bits = (bits + 127) << 23;  // the rounder's own bits fall out
    F scale;
    std::memcpy(&scale, &bits, sizeof scale);
    store(values, F(1.0F / (1.0F + series * scale)));
}

// Of `count` values or their squares, after `centre` is taken away; N at a time.
template <int N>
LCT_INLINE double centred_sum(const double* values, size_t count, double centre, bool squared) {
    using D = Vector<double, N>;
    D sums = {};
    size_t i = 0;
    for (; i + N <= count; i += N) {
        D value;
        load(value, values + i);
        value = value - centre;
        sums += squared ? value * value : value;
    }
    double total = 0.0, apart[N];
    reinterpret(apart, sums);
    for (int k = 0; k < N; ++k) {
        total += apart[k];
    }
    for (; i < count; ++i) {
        const double value = values[i] - centre;
        total += squared ? value * value : value;
    }
    return total;
}

// A zero point of X needs no care: centring takes it away.
template <int W>
LCT_INLINE void gate_groups(size_t first, size_t end, const GateParameters& p, const double* sums,
                            float* gates) {
    constexpr int lanes = std::max(1, W / 2);
    const double share = 1.0 / static_cast<double>(p.group);
    for (size_t g = first; g < end; g += p.group) {
        const double mean = centred_sum<lanes>(sums + g, p.group, 0.0, false) * share;
        const double variance = centred_sum<lanes>(sums + g, p.group, mean, true) * p.factor * p.factor;
        const double inverse = p.factor / std::sqrt(variance * share + p.epsilon);
        for (size_t c = g; c < g + p.group; ++c) {
            gates[c] = static_cast<float>((sums[c] - mean) * inverse) * p.w[c] + p.b[c];
        }
    }
    size_t c = first;
    for (; c + W <= end; c += W) {
        sigmoid<W>(gates + c);
    }
    for (; c < end; ++c) {
        sigmoid<1>(gates + c);
    }
}

// ---------------------------------------------------------------------------------------------------
// Weights of a 1x1 convolution

struct Weights {
    const float* values;  // (outputs / block, inputs, block)
    size_t inputs, block;  // inputs are a multiple of the block, which is 8 or 16
};

// z = W · sums · factor + bias of one block of N outputs, in double.
template <int N, int W>
LCT_INLINE void project_block(const float* weights, const float* bias, size_t inputs, const double* sums,
                              double factor, double* z) {
    constexpr int lanes = std::max(2, std::min(N, W / 2)), parts = N / lanes;
    constexpr int chains = std::max(1, 8 / parts);  // of additions, each of which waits for its last
    Vector<double, lanes> total[chains][parts] = {};
    for (size_t i = 0; i < inputs; i += chains) {
        LCT_UNROLL for (int k = 0; k < chains; ++k) {
            LCT_UNROLL for (int j = 0; j < parts; ++j) {
                Vector<double, lanes> wide = {};
                widen(wide, weights + (i + k) * N + j * lanes);
                total[k][j] += wide * sums[i + k];
            }
        }
    }
    double flat[chains][N];
    reinterpret(flat, total);
    for (int i = 0; i < N; ++i) {
        double sum = 0.0;
        for (int k = 0; k < chains; ++k) {
            sum += flat[k][i];
        }
        z[i] = sum * factor + bias[i];
    }
}

template <int W>
LCT_INLINE void project_outputs(const Weights& weights, const float* bias, size_t first, size_t end,
                                const double* sums, double factor, double* z) {
    for (size_t o = first; o < end; o += weights.block) {
        const float* from = weights.values + o * weights.inputs;
        if (weights.block == 8) {
            project_block<8, W>(from, bias + o, weights.inputs, sums, factor, z + o);
        } else {
            project_block<16, W>(from, bias + o, weights.inputs, sums, factor, z + o);
        }
    }
}

template <int N, int W>
LCT_INLINE void reweigh_block(const float* weights, size_t inputs, const float* gates, float* to) {
    constexpr int lanes = std::min(N, W);
    Vector<float, lanes> gate[N / lanes];
    std::memcpy(gate, gates, sizeof gate);
    for (size_t at = 0; at < inputs * N; at += N) {
        LCT_UNROLL for (int j = 0; j < N / lanes; ++j) {
            Vector<float, lanes> value;
            load(value, weights + at + j * lanes);
            value *= gate[j];
            store(to + at + j * lanes, value);
        }
    }
}

// `to` has the order of the weights.
template <int W>
LCT_INLINE void reweigh_outputs(const Weights& weights, size_t first, size_t end, const float* gates,
                                float* to) {
    for (size_t o = first; o < end; o += weights.block) {
        const size_t at = o * weights.inputs;
        if (weights.block == 8) {
            reweigh_block<8, W>(weights.values + at, weights.inputs, gates + o, to + at);
        } else {
            reweigh_block<16, W>(weights.values + at, weights.inputs, gates + o, to + at);
        }
    }
}

// ---------------------------------------------------------------------------------------------------
// Instruction sets: the same code, compiled for each and chosen when the library is loaded.

template <class T> using ScaleOf = std::conditional_t<std::is_same_v<T, float>, FloatScale, Uint8Scale>;

template <class T> struct TypedKernels {
    void (*pool)(const Extent&, const Piece&, const T*, double*);
    void (*scale)(const Extent&, const Piece&, const T*, const T*, T*, const float*, const ScaleOf<T>&);
};

struct Kernels {
    TypedKernels<float> of_float;
    TypedKernels<uint8_t> of_uint8;
    void (*gate)(size_t, size_t, const GateParameters&, const double*, float*);
    void (*project)(const Weights&, const float*, size_t, size_t, const double*, double, double*);
    void (*reweigh)(const Weights&, size_t, size_t, const float*, float*);

    template <class T> const TypedKernels<T>& of() const {
        if constexpr (std::is_same_v<T, float>) {
            return of_float;
        } else {
            return of_uint8;
        }
    }
};

// The target is an attribute of functions that everything above is inlined into; unlike `target_clones`
// this needs no help of the loader, so it serves musl and macOS too.
#define LCT_KERNELS_OF(type, set, lanes, target)                                                           \
    target void pool_##type##_##set(const Extent& e, const Piece& p, const type* x, double* sums) {        \
        pool_piece<type, lanes>(e, p, x, sums);                                                            \
    }                                                                                                      \
    target void scale_##type##_##set(const Extent& e, const Piece& p, const type* x, const type* identity, \
                                     type* y, const float* gates, const ScaleOf<type>& scale) {            \
        scale_piece<type, lanes>(e, p, x, identity, y, gates, scale);                                      \
    }
#define LCT_KERNELS(set, lanes, target)                                                             \
    LCT_KERNELS_OF(float, set, lanes, target)                                                       \
    LCT_KERNELS_OF(uint8_t, set, lanes, target)                                                     \
    target void gate_##set(size_t first, size_t end, const GateParameters& p, const double* sums,   \
                           float* gates) {                                                          \
        gate_groups<lanes>(first, end, p, sums, gates);                                             \
    }                                                                                               \
    target void project_##set(const Weights& weights, const float* bias, size_t first, size_t end,  \
                              const double* sums, double factor, double* z) {                       \
        project_outputs<lanes>(weights, bias, first, end, sums, factor, z);                         \
    }                                                                                               \
    target void reweigh_##set(const Weights& weights, size_t first, size_t end, const float* gates, \
                              float* to) {                                                          \
        reweigh_outputs<lanes>(weights, first, end, gates, to);                                     \
    }                                                                                               \
    constexpr Kernels kernels_##set = {{pool_float_##set, scale_float_##set},                       \
                                       {pool_uint8_t_##set, scale_uint8_t_##set},                   \
                                       gate_##set,                                                  \
                                       project_##set,                                               \
                                       reweigh_##set};

LCT_KERNELS(baseline, 4, )
#if defined(__x86_64__)
LCT_KERNELS(avx2, 8, __attribute__((target("avx2,fma"))))
LCT_KERNELS(avx512, 16, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))))
#endif

// LCT_CPU_ISA=baseline or avx2 asks for less than the processor has: for tests and bug reports.
const Kernels& choose_kernels() {
#if defined(__x86_64__)
    const char* asked = std::getenv("LCT_CPU_ISA");
    const auto allows = [&](const char* set) { return asked == nullptr || std::strcmp(asked, set) == 0; };
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && allows("avx512")) {
        return kernels_avx512;
    }
    if (avx2 && (allows("avx2") || allows("avx512"))) {
        return kernels_avx2;
    }
#endif
    return kernels_baseline;
}

const Kernels& kernels() {
    static const Kernels& chosen = choose_kernels();
    return chosen;
}

}  // namespace
