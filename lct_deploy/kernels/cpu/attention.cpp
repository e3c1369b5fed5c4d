// The tail of a residual block as operators of onnxruntime, domain `lct`, version 1, on the CPU:
//
//   Attn(X, identity, w, b) → Y[, gate]              Y = ReLU(X · gate + identity), gate = σ(w ⊙ ẑ + b), ẑ
//   AttnQ(X, identity, w, b, scales, zero_points)    the group-normalised mean of X over pixels; gate: (N, C)
//   GateAdd(X, identity, gate) → Y                   Y = ReLU(X · gate + identity)
//   GateAddQ(X, identity, gate, scales, zero_points)
//   GateWeights(U, W, bias, w, b)                    the gate that Attn has for X = Conv1x1(U, W) + bias, got
//     → weights, biases[, gate]                      from the mean of U; weights = gate · W for each sample
//
// X, identity and Y are float32 or, in those with Q, uint8 with scales and zero points in that order.
// The attribute `block` tells their layout: 0 is (N, H, W, C); 1 is (N, C, H, W); 8 and 16 are given as
// (N, C, H, W) and lie in memory as (N, C / block, H, W, block), which is onnxruntime's NCHWc. U is of the
// latter. Its W, given as (O, I, 1, 1), lies as (O / block, I, block), and so do a sample's weights: those
// of all samples are (N · O, I, 1, 1), and the biases (N · O).
//
// A gate needs only its own group's channels. So the channels are cut into slabs of whole groups, and
// one task pools a slab, computes its gates and scales it: the second read of X then hits the cache. Of
// W too: a task computes the gates of a slab of outputs from it, and scales it.

#include "kernels.h"
#include "onnxruntime_api.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <thread>

#define LCT_TRY(expression)                               \
    if (OrtStatus* lct_status = (expression); lct_status) \
    return lct_status

namespace {

const OrtEntries* ort = nullptr;  // set before any operator exists

__attribute__((format(printf, 1, 2))) OrtStatus* invalid(const char* format, ...) {
    char message[256];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return ort->create_status(kOrtInvalidArgument, message);
}

// ---------------------------------------------------------------------------------------------------
// Schedule

constexpr size_t kTaskBytes = 16 * 1024;  // of X: less is not worth a task
constexpr size_t kSlabChannelsLast = 64;  // side by side, so that a pixel's share is whole cache lines
// A slab of few channels touches few of the cache's sets: what it may hold of (H, W, C) is little.
constexpr size_t kScatteredBytes = 128 * 1024;
constexpr size_t kCachedBytes = 1024 * 1024;  // of a sample, whose second read should hit a core's own cache
constexpr size_t kThreadsToFeed = 16;  // beyond, memory is what limits

size_t threads_to_feed() {
    static const size_t threads =
        std::min<size_t>(std::max(1U, std::thread::hardware_concurrency()), kThreadsToFeed);
    return threads;
}

size_t at_least_one(size_t number) { return std::max<size_t>(1, number); }

// Whole groups and whole blocks, all pixels.
Cut cut_slabs(const Extent& extent, size_t group) {
    const size_t least = extent.channels_last() ? kSlabChannelsLast : 1;
    const size_t whole = std::lcm(group, at_least_one(extent.block));
    return {extent, whole * ((least + whole - 1) / whole), extent.pixels};
}

Cut coarsen(Cut slabs, size_t element) {
    slabs.channels *= at_least_one(kTaskBytes / (slabs.channels * slabs.pixels * element));
    return slabs;
}

// The same number of tasks for each thread, and no more: a wide slab is read along its runs of memory.
Cut deal(Cut slabs) {
    const size_t threads = threads_to_feed(), parts = threads / std::gcd(threads, slabs.extent.samples);
    const size_t wanted = (slabs.extent.channels + parts - 1) / parts;
    slabs.channels = std::min(slabs.channels * at_least_one(wanted / slabs.channels), slabs.extent.channels);
    return slabs;
}

// Without regard to groups: runs of memory.
Cut cut_evenly(const Extent& extent, size_t element) {
    if (!extent.channels_last()) {
        return coarsen({extent, extent.block, extent.pixels}, element);
    }
    const size_t task = at_least_one(kTaskBytes / (extent.channels * element));
    const size_t share = (extent.pixels + threads_to_feed() - 1) / threads_to_feed();
    return {extent, extent.channels, std::max(task, share)};
}

// Runs task(piece) for all pieces on onnxruntime's own threads.
template <class Task>
OrtStatus* for_each_piece(const OrtKernelContext* context, const Cut& cut, const Task& task) {
    struct Work {
        const Cut& cut;
        const Task& task;
    } work{cut, task};
    const auto run = [](void* data, size_t index) {
        const Work& work = *static_cast<Work*>(data);
        work.task(work.cut.piece(index));
    };
    return ort->parallel_for(context, run, cut.count(), 0, &work);
}

// ---------------------------------------------------------------------------------------------------
// The operators on plain memory

template <class T> struct Tail {
    Extent extent;
    const T* x;
    const T* identity;
    T* y;
    ScaleOf<T> scale;

    Tail sample(size_t index) const {
        const size_t at = index * extent.sample_size();
        Extent one = extent;
        one.samples = 1;
        return {one, x + at, identity + at, y + at, scale};
    }
    void scale_piece(const Piece& piece, const float* gates) const {
        kernels().of<T>().scale(extent, piece, x, identity, y, gates + piece.sample * extent.channels, scale);
    }
};

// Sums over the pixels of each of the cut's pixel ranges.
struct Sums {
    const Cut& cut;
    std::unique_ptr<double[]> values;

    explicit Sums(const Cut& cut) : cut(cut) {
        const size_t count = cut.extent.samples * cut.extent.channels * cut.pixel_pieces();
        values.reset(new (std::nothrow) double[count]());
    }

    explicit operator bool() const { return values != nullptr; }
    double* of(size_t sample, size_t pixel_index = 0) const {
        return values.get() + (sample * cut.pixel_pieces() + pixel_index) * cut.extent.channels;
    }
    template <class T> void pool(const Piece& piece, const T* x) const {
        kernels().of<T>().pool(cut.extent, piece, x, of(piece.sample, piece.pixel_index));
    }
    // Of all pixels, in the place of the first range's.
    const double* total(size_t sample, size_t first, size_t end) const {
        double* total = of(sample);
        for (size_t p = 1; p < cut.pixel_pieces(); ++p) {
            const double* part = of(sample, p);
            for (size_t c = first; c < end; ++c) {
                total[c] += part[c];
            }
        }
        return total;
    }
};

struct Gates {
    GateParameters parameters;
    float* values;  // (N, C)
    size_t channels;

    float* of(size_t sample) const { return values + sample * channels; }
    void compute(const Piece& slab, const double* sums) const {
        kernels().gate(slab.channel, slab.channel + slab.channels, parameters, sums, of(slab.sample));
    }
};

OrtStatus* no_memory() { return ort->create_status(kOrtFail, "out of memory for the gates"); }

template <class T>
OrtStatus* attend_by_slab(const OrtKernelContext* context, const Tail<T>& tail, const Gates& gates,
                          const Cut& slabs) {
    const Sums sums(slabs);
    if (!sums) {
        return no_memory();
    }
    return for_each_piece(context, slabs, [&](const Piece& piece) {
        sums.pool(piece, tail.x);
        gates.compute(piece, sums.of(piece.sample));
        tail.scale_piece(piece, gates.values);
    });
}

// One sample, all threads at the same step. Who pools last computes the gates, sooner than all could be
// told to.
template <class T>
OrtStatus* attend_by_step(const OrtKernelContext* context, const Tail<T>& tail, const Gates& gates) {
    const Cut cut = cut_evenly(tail.extent, sizeof(T));
    const Sums sums(cut);
    if (!sums) {
        return no_memory();
    }
    const size_t channels = tail.extent.channels;
    std::atomic<size_t> left = cut.count();
    LCT_TRY(for_each_piece(context, cut, [&](const Piece& piece) {
        sums.pool(piece, tail.x);
        if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            gates.compute({0, 0, channels, 0, tail.extent.pixels, 0}, sums.total(0, 0, channels));
        }
    }));
    return for_each_piece(context, cut, [&](const Piece& piece) { tail.scale_piece(piece, gates.values); });
}

template <class T>
OrtStatus* attend(const OrtKernelContext* context, const Tail<T>& tail, const Gates& gates) {
    const Extent& extent = tail.extent;
    const Cut slabs = cut_slabs(extent, gates.parameters.group);
    const Cut tasks = extent.channels_last() ? deal(slabs) : coarsen(slabs, sizeof(T));
    const bool whole = tasks.channels == extent.channels;
    const bool fits = !extent.channels_last() ||
                      extent.sample_size() * sizeof(T) <= (whole ? kCachedBytes : kScatteredBytes);
    if (slabs.count() >= threads_to_feed() && fits) {
        return attend_by_slab(context, tail, gates, tasks);
    }
    for (size_t sample = 0; sample < extent.samples; ++sample) {
        const Gates of_sample{gates.parameters, gates.of(sample), gates.channels};
        LCT_TRY(attend_by_step(context, tail.sample(sample), of_sample));
    }
    return nullptr;
}

template <class T>
OrtStatus* add_gated(const OrtKernelContext* context, const Tail<T>& tail, const float* gate) {
    return for_each_piece(context, cut_evenly(tail.extent, sizeof(T)),
                          [&](const Piece& piece) { tail.scale_piece(piece, gate); });
}

struct Hoist {
    Extent u;
    const float* values;  // of U
    Weights weights;
    const float* bias;
    size_t outputs;
    float* gated_weights;
    float* gated_bias;

    // A slab of the outputs: their z from sums over U's pixels, their gates, the weights times these.
    void weigh(const Piece& slab, const double* sums, double* z, const Gates& gates) const {
        const size_t first = slab.channel, end = first + slab.channels, at = slab.sample * outputs;
        kernels().project(weights, bias, first, end, sums, 1.0 / static_cast<double>(u.pixels), z + at);
        gates.compute(slab, z + at);
        const float* gate = gates.of(slab.sample);
        kernels().reweigh(weights, first, end, gate, gated_weights + at * u.channels);
        for (size_t o = first; o < end; ++o) {
            gated_bias[at + o] = bias[o] * gate[o];
        }
    }
};

// Blocks of U; where they are too few to feed all threads, each in ranges of pixels.
Cut cut_pooling(const Extent& u) {
    const size_t blocks = u.samples * u.channels / u.block;
    const size_t ranges = (threads_to_feed() + blocks - 1) / blocks;
    const size_t least = at_least_one(kTaskBytes / (u.block * sizeof(float)));
    return coarsen({u, u.block, std::min(u.pixels, std::max(least, u.pixels / ranges))}, sizeof(float));
}

OrtStatus* weigh(const OrtKernelContext* context, const Hoist& hoist, const Gates& gates) {
    const size_t samples = hoist.u.samples, inputs = hoist.u.channels;
    const Cut pieces = cut_pooling(hoist.u);
    const Sums sums(pieces);
    const std::unique_ptr<double[]> z(new (std::nothrow) double[samples * hoist.outputs]);
    if (!sums || !z) {
        return no_memory();
    }
    LCT_TRY(for_each_piece(context, pieces, [&](const Piece& piece) { sums.pool(piece, hoist.values); }));
    for (size_t sample = 0; sample < samples; ++sample) {
        sums.total(sample, 0, inputs);
    }
    const Extent outputs = {samples, hoist.outputs, 1, hoist.u.block};
    const Cut slabs = coarsen(cut_slabs(outputs, gates.parameters.group), inputs * sizeof(float));
    return for_each_piece(context, slabs, [&](const Piece& slab) {
        hoist.weigh(slab, sums.of(slab.sample), z.get(), gates);
    });
}

// ---------------------------------------------------------------------------------------------------
// The operators on onnxruntime's tensors

struct Tensor {
    void* data;
    size_t rank;
    int64_t sizes[4];

    template <class T> T* as() const { return static_cast<T*>(data); }
    bool is(std::initializer_list<int64_t> expected) const {
        return rank == expected.size() && std::equal(expected.begin(), expected.end(), sizes);
    }
};

OrtStatus* read_sizes(const OrtTensorTypeAndShapeInfo* shape, Tensor& tensor) {
    LCT_TRY(ort->get_rank(shape, &tensor.rank));
    return tensor.rank <= 4 ? ort->get_dimensions(shape, tensor.sizes, tensor.rank) : nullptr;
}

OrtStatus* read_input(const OrtKernelContext* context, size_t index, Tensor& tensor) {
    const OrtValue* value = nullptr;
    LCT_TRY(ort->get_input(context, index, &value));
    OrtTensorTypeAndShapeInfo* shape = nullptr;
    LCT_TRY(ort->get_shape(value, &shape));
    OrtStatus* status = read_sizes(shape, tensor);
    ort->release_shape(shape);
    LCT_TRY(status);
    return ort->get_data(const_cast<OrtValue*>(value), &tensor.data);
}

// The optional output `index` where the node has it, else null.
OrtStatus* make_output(OrtKernelContext* context, size_t index, std::initializer_list<int64_t> sizes,
                       void** data) {
    OrtValue* output = nullptr;
    LCT_TRY(ort->get_output(context, index, sizes.begin(), sizes.size(), &output));
    *data = nullptr;
    return output == nullptr ? nullptr : ort->get_data(output, data);
}

enum class Form { attention, gated_addition, gated_weights };

struct Operator : OrtCustomOp {
    const char* name;
    const char* inputs;   // f: float32, q: uint8
    const char* outputs;  // likewise
    Form form;

    bool quantized() const { return inputs[0] == 'q'; }
    bool computes_gate() const { return form != Form::gated_addition; }
    // The gate, which comes last.
    bool is_optional(size_t output) const { return computes_gate() && outputs[output + 1] == '\0'; }
};

struct Kernel {
    const Operator& op;
    int64_t block, groups;
    float epsilon;
};

OrtStatus* read_extent(const Kernel& kernel, const char* letter, const Tensor& x, Extent& extent) {
    const char* name = kernel.op.name;
    if (x.rank != 4) {
        return invalid("lct.%s: %s has %zu dimensions, not 4", name, letter, x.rank);
    }
    const auto* n = x.sizes;
    const bool channels_last = kernel.block == 0;
    const int64_t channels = channels_last ? n[3] : n[1];
    const int64_t pixels = channels_last ? n[1] * n[2] : n[2] * n[3];
    if (kernel.block > 1 && channels % kernel.block != 0) {
        return invalid("lct.%s: %lld channels do not divide into blocks of %lld", name,
                       static_cast<long long>(channels), static_cast<long long>(kernel.block));
    }
    extent = {static_cast<size_t>(n[0]), static_cast<size_t>(channels), static_cast<size_t>(pixels),
              static_cast<size_t>(kernel.block)};
    return nullptr;
}

OrtStatus* read_scale(const OrtKernelContext*, const Kernel&, FloatScale&) { return nullptr; }

// The last two inputs.
OrtStatus* read_scale(const OrtKernelContext* context, const Kernel& kernel, Uint8Scale& scale) {
    const size_t count = std::strlen(kernel.op.inputs);
    Tensor scales, zero_points;
    LCT_TRY(read_input(context, count - 2, scales));
    LCT_TRY(read_input(context, count - 1, zero_points));
    if (!scales.is({3}) || !zero_points.is({3})) {
        return invalid("lct.%s: scales and zero_points hold three values each: X, identity, Y",
                       kernel.op.name);
    }
    const auto* s = scales.as<float>();
    const auto usable = [](float value) { return value > 0 && std::isfinite(value); };
    if (!std::all_of(s, s + 3, usable) || !usable(s[0] / s[2]) || !usable(s[1] / s[2])) {
        return invalid("lct.%s: scales and what they are of Y's must be positive and finite", kernel.op.name);
    }
    const auto* z = zero_points.as<uint8_t>();
    const float x = s[0] / s[2], identity = s[1] / s[2];
    scale = {s[0], x, identity, z[0], z[1], z[2], fraction_bits(x, identity)};
    return nullptr;
}

struct GateBuffer : Gates {
    std::unique_ptr<float[]> own;
};

// w and b are the inputs from `first` on. The gates are the last output, or a buffer where the node has none.
OrtStatus* read_gates(OrtKernelContext* context, const Kernel& kernel, size_t first, size_t samples,
                      size_t channels, double factor, GateBuffer& gates) {
    const char* name = kernel.op.name;
    const auto n = static_cast<int64_t>(samples), c = static_cast<int64_t>(channels);
    Tensor w, b;
    LCT_TRY(read_input(context, first, w));
    LCT_TRY(read_input(context, first + 1, b));
    if (!w.is({c}) || !b.is({c})) {
        return invalid("lct.%s: w and b must hold one value for each of %lld channels", name,
                       static_cast<long long>(c));
    }
    if (c % kernel.groups != 0) {
        return invalid("lct.%s: %lld channels do not divide into %lld groups", name,
                       static_cast<long long>(c), static_cast<long long>(kernel.groups));
    }
    void* output = nullptr;
    LCT_TRY(make_output(context, std::strlen(kernel.op.outputs) - 1, {n, c}, &output));
    if (output == nullptr) {
        gates.own.reset(new (std::nothrow) float[samples * channels]);
        output = gates.own.get();
    }
    gates.parameters = {w.as<float>(), b.as<float>(), channels / static_cast<size_t>(kernel.groups),
                        kernel.epsilon, factor};
    gates.values = static_cast<float*>(output);
    gates.channels = channels;
    return output == nullptr ? no_memory() : nullptr;
}

template <class T> OrtStatus* attend(OrtKernelContext* context, const Kernel& kernel, const Tail<T>& tail) {
    const Extent& extent = tail.extent;
    GateBuffer gates;
    const double factor = tail.scale.unit / static_cast<double>(extent.pixels);
    LCT_TRY(read_gates(context, kernel, 2, extent.samples, extent.channels, factor, gates));
    if (extent.samples * extent.sample_size() == 0) {
        // The mean of nothing.
        std::fill_n(gates.values, extent.samples * extent.channels, std::numeric_limits<float>::quiet_NaN());
        return nullptr;
    }
    return attend(context, tail, gates);
}

template <class T>
OrtStatus* add_gated(const OrtKernelContext* context, const Kernel& kernel, const Tail<T>& tail) {
    const auto n = static_cast<int64_t>(tail.extent.samples), c = static_cast<int64_t>(tail.extent.channels);
    Tensor gate;
    LCT_TRY(read_input(context, 2, gate));
    if (!gate.is({n, c}) && !gate.is({n, c, 1, 1})) {
        return invalid(
            "lct.%s: the gate must have the shape (N, C) or (N, C, 1, 1), here N = %lld and C = %lld",
            kernel.op.name, static_cast<long long>(n), static_cast<long long>(c));
    }
    if (tail.extent.samples * tail.extent.sample_size() == 0) {
        return nullptr;
    }
    Tail<T> known = tail;
    if constexpr (std::is_same_v<T, uint8_t>) {
        const auto* values = gate.as<float>();
        const auto shrinks = [](float value) { return std::abs(value) <= 1; };
        known.scale.fraction = std::all_of(values, values + n * c, shrinks) ? tail.scale.fraction : 0;
    }
    return add_gated(context, known, gate.as<float>());
}

template <class T> OrtStatus* compute(const Kernel& kernel, OrtKernelContext* context) {
    Tensor x, identity;
    Tail<T> tail;
    LCT_TRY(read_input(context, 0, x));
    LCT_TRY(read_input(context, 1, identity));
    LCT_TRY(read_extent(kernel, "X", x, tail.extent));
    if (identity.rank != 4 || !std::equal(x.sizes, x.sizes + 4, identity.sizes)) {
        return invalid("lct.%s: identity has another shape than X", kernel.op.name);
    }
    LCT_TRY(read_scale(context, kernel, tail.scale));
    const auto* n = x.sizes;
    void* y = nullptr;
    LCT_TRY(make_output(context, 0, {n[0], n[1], n[2], n[3]}, &y));
    tail.x = x.as<T>();
    tail.identity = identity.as<T>();
    tail.y = static_cast<T*>(y);
    return kernel.op.computes_gate() ? attend(context, kernel, tail) : add_gated(context, kernel, tail);
}

OrtStatus* read_hoist(const OrtKernelContext* context, const Kernel& kernel, Hoist& hoist) {
    const char* name = kernel.op.name;
    const int64_t block = kernel.block;
    Tensor u, weights{}, bias;
    LCT_TRY(read_input(context, 0, u));
    LCT_TRY(read_input(context, 1, weights));
    LCT_TRY(read_input(context, 2, bias));
    LCT_TRY(read_extent(kernel, "U", u, hoist.u));
    if (hoist.u.samples > 0 && hoist.u.sample_size() == 0) {
        return invalid("lct.%s: U holds no pixels to pool", name);
    }
    const int64_t outputs = weights.sizes[0], inputs = u.sizes[1];
    if (!weights.is({outputs, inputs, 1, 1}) || outputs % block != 0) {
        return invalid("lct.%s: W must have the shape (O, %lld, 1, 1), O a multiple of %lld", name,
                       static_cast<long long>(inputs), static_cast<long long>(block));
    }
    if (!bias.is({outputs})) {
        return invalid("lct.%s: bias must hold one value for each of %lld outputs", name,
                       static_cast<long long>(outputs));
    }
    hoist.values = u.as<float>();
    hoist.weights = {weights.as<float>(), hoist.u.channels, hoist.u.block};
    hoist.bias = bias.as<float>();
    hoist.outputs = static_cast<size_t>(outputs);
    return nullptr;
}

OrtStatus* weigh(OrtKernelContext* context, const Kernel& kernel) {
    Hoist hoist;
    LCT_TRY(read_hoist(context, kernel, hoist));
    const size_t samples = hoist.u.samples, outputs = hoist.outputs;
    const auto rows = static_cast<int64_t>(samples * outputs);
    const auto inputs = static_cast<int64_t>(hoist.u.channels);
    void *weights = nullptr, *bias = nullptr;
    LCT_TRY(make_output(context, 0, {rows, inputs, 1, 1}, &weights));
    LCT_TRY(make_output(context, 1, {rows}, &bias));
    hoist.gated_weights = static_cast<float*>(weights);
    hoist.gated_bias = static_cast<float*>(bias);
    GateBuffer gates;
    LCT_TRY(read_gates(context, kernel, 3, samples, outputs, 1.0, gates));
    return rows == 0 ? nullptr : weigh(context, hoist, gates);
}

// ---------------------------------------------------------------------------------------------------
// What onnxruntime asks of an operator

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

OrtElementType element_type(char letter) { return letter == 'q' ? kOrtUint8 : kOrtFloat; }

// onnxruntime's own message names neither the operator nor what is asked of the attribute.
OrtStatus* explain(OrtStatus* status, const char* name, const char* attribute) {
    if (status == nullptr) {
        return nullptr;
    }
    ort->release_status(status);
    return invalid("lct.%s: needs the attribute %s", name, attribute);
}

OrtStatus* read_attributes(const OrtKernelInfo* info, Kernel& kernel) {
    const char* name = kernel.op.name;
    LCT_TRY(explain(ort->get_int(info, "block", &kernel.block), name, "block, an integer"));
    const auto block = static_cast<long long>(kernel.block);
    const bool blocked = block == 8 || block == 16;
    if (kernel.op.form == Form::gated_weights) {
        if (!blocked) {
            return invalid("lct.%s: block is %lld, not 8 or 16", name, block);
        }
    } else if (!blocked && block != 0 && block != 1) {
        return invalid("lct.%s: block is %lld, not 0, 1, 8 or 16", name, block);
    }
    if (!kernel.op.computes_gate()) {
        return nullptr;
    }
    LCT_TRY(explain(ort->get_int(info, "groups", &kernel.groups), name, "groups, an integer"));
    LCT_TRY(explain(ort->get_float(info, "epsilon", &kernel.epsilon), name, "epsilon, a float"));
    if (kernel.groups < 1) {
        return invalid("lct.%s: groups is %lld, not positive", name, static_cast<long long>(kernel.groups));
    }
    if (!(kernel.epsilon > 0) || !std::isfinite(kernel.epsilon)) {
        return invalid("lct.%s: epsilon is %g, not positive and finite", name,
                       static_cast<double>(kernel.epsilon));
    }
    return nullptr;
}

OrtStatus* create(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
    std::unique_ptr<Kernel> made(new (std::nothrow) Kernel{self(op), 0, 1, 0});
    if (!made) {
        return ort->create_status(kOrtFail, "out of memory for an operator");
    }
    LCT_TRY(read_attributes(info, *made));
    *kernel = made.release();
    return nullptr;
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
    const auto& known = *static_cast<const Kernel*>(kernel);
    if (known.op.form == Form::gated_weights) {
        return weigh(context, known);
    }
    return known.op.quantized() ? compute<uint8_t>(known, context) : compute<float>(known, context);
}

// Gives an output the shape of an input. Where that is unknown the output's is too, which is no error.
void infer_same(OrtShapeInferContext* context, size_t input, size_t output) {
    OrtTensorTypeAndShapeInfo* shape = nullptr;  // stays the context's
    OrtStatus* status = ort->get_input_shape(context, input, &shape);
    if (status == nullptr) {
        status = ort->set_output_shape(context, output, shape);
    }
    if (status != nullptr) {
        ort->release_status(status);
    }
}

// Y has X's shape. That of the gate is left open: a node without it has no place to say it.
OrtStatus* infer_tail(const OrtCustomOp*, OrtShapeInferContext* context) {
    infer_same(context, 0, 0);
    return nullptr;
}

// Of one sample, the weights have W's shape and the biases that of bias.
OrtStatus* infer_weights(const OrtCustomOp*, OrtShapeInferContext* context) {
    OrtTensorTypeAndShapeInfo* shape = nullptr;
    Tensor u{};
    OrtStatus* status = ort->get_input_shape(context, 0, &shape);
    if (status == nullptr) {
        status = read_sizes(shape, u);
    }
    if (status != nullptr) {
        ort->release_status(status);
    } else if (u.rank == 4 && u.sizes[0] == 1) {
        infer_same(context, 1, 0);
        infer_same(context, 2, 1);
    }
    return nullptr;
}

// Y may take the memory of X or of identity: element i of Y needs element i of each, read before.
size_t may_inplace(int** inputs, int** outputs) {
    static int from[] = {0, 1}, to[] = {0, 0};
    *inputs = from;
    *outputs = to;
    return 2;
}

Operator describe(const char* name, const char* inputs, const char* outputs, Form form) {
    Operator op{};
    op.version = kOrtApiVersion;
    op.get_name = [](const OrtCustomOp* op) { return self(op).name; };
    op.get_execution_provider = [](const OrtCustomOp*) -> const char* { return nullptr; };
    op.get_input_type = [](const OrtCustomOp* op, size_t i) { return element_type(self(op).inputs[i]); };
    op.get_input_count = [](const OrtCustomOp* op) { return std::strlen(self(op).inputs); };
    op.get_output_type = [](const OrtCustomOp* op, size_t i) { return element_type(self(op).outputs[i]); };
    op.get_output_count = [](const OrtCustomOp* op) { return std::strlen(self(op).outputs); };
    op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    op.get_input_characteristic = [](const OrtCustomOp*, size_t) { return kOrtRequired; };
    op.get_output_characteristic = [](const OrtCustomOp* op, size_t i) {
        return self(op).is_optional(i) ? kOrtOptional : kOrtRequired;
    };
    op.get_input_memory = [](const OrtCustomOp*, size_t) { return kOrtDefaultMemory; };
    op.create_kernel_2 = create;
    op.compute_2 = compute;
    op.get_start_version = [](const OrtCustomOp*) { return 1; };
    op.get_end_version = [](const OrtCustomOp*) { return 1; };
    if (form == Form::gated_weights) {
        op.infer_output_shape = infer_weights;
    } else {
        op.infer_output_shape = infer_tail;
        op.get_may_inplace = may_inplace;
        op.release_may_inplace = [](int*, int*) {};
    }
    op.name = name;
    op.inputs = inputs;
    op.outputs = outputs;
    op.form = form;
    return op;
}

// Null where onnxruntime refuses.
OrtCustomOpDomain* make_domain(const OrtApi* api) {
    static const OrtEntries entries(api);
    static const Operator operators[] = {
        describe("Attn", "ffff", "ff", Form::attention),
        describe("AttnQ", "qqfffq", "qf", Form::attention),
        describe("GateAdd", "fff", "f", Form::gated_addition),
        describe("GateAddQ", "qqffq", "q", Form::gated_addition),
        describe("GateWeights", "fffff", "fff", Form::gated_weights),
    };
    ort = &entries;
    OrtCustomOpDomain* domain = nullptr;
    OrtStatus* status = ort->create_domain("lct", &domain);
    for (const Operator& op : operators) {
        status = status == nullptr ? ort->add_operator(domain, &op) : status;
    }
    if (status != nullptr) {
        ort->release_status(status);
        return nullptr;
    }
    return domain;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
    const OrtApi* api = base->get_api(kOrtApiVersion);
    if (api == nullptr) {
        return OrtEntries::create_status_by(base->get_api(1))(
            kOrtFail, "the operators of the domain lct need onnxruntime 1.18 or newer");
    }
    // One for all sessions, and for good: they keep pointers to it.
    static OrtCustomOpDomain* const domain = make_domain(api);
    if (domain == nullptr) {
        return ort->create_status(kOrtFail, "onnxruntime refuses the operators of the domain lct");
    }
    return ort->add_domain(options, domain);
}
