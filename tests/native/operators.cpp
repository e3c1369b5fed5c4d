// The CPU operators by their only door, RegisterCustomOps, with a stand-in for onnxruntime: for the
// sanitizers, which onnxruntime's own threads and memory would blind. Every tensor is a heap block of
// exactly its size, tasks run on threads of their own, and an entry that the header does not list aborts.

#include "onnxruntime_api.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

struct OrtStatus {
    std::string message;
};
struct OrtTensorTypeAndShapeInfo {
    std::vector<int64_t> sizes;
};
struct OrtValue {
    std::vector<int64_t> sizes;
    void* data;
};
struct OrtKernelInfo {
    std::map<std::string, int64_t> integers;
    std::map<std::string, float> floats;
};
struct OrtKernelContext {
    std::vector<OrtValue> inputs, outputs;
    int threads;
};
struct OrtShapeInferContext {
    std::vector<OrtTensorTypeAndShapeInfo> inputs;  // none: unknown
    std::map<size_t, OrtTensorTypeAndShapeInfo> outputs;
};
struct OrtCustomOpDomain {
    std::vector<const OrtCustomOp*> operators;
};
struct OrtSessionOptions {
    std::vector<OrtCustomOpDomain*> domains;
};

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions*, const OrtApiBase*);

namespace {

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "%s\n", what.c_str());
    std::exit(1);
}

void expect(bool condition, const std::string& what) {
    if (!condition) {
        fail(what);
    }
}

// ---------------------------------------------------------------------------------------------------
// The stand-in

std::atomic<int> statuses{0};  // made and not released

OrtStatus* make_status(OrtErrorCode, const char* message) {
    ++statuses;
    return new OrtStatus{message};
}

void release_status(OrtStatus* status) {
    --statuses;
    delete status;
}

template <class T>
OrtStatus* find_attribute(const std::map<std::string, T>& attributes, const char* name, T* value) {
    const auto found = attributes.find(name);
    if (found == attributes.end()) {
        return make_status(kOrtFail, "no such attribute");
    }
    *value = found->second;
    return nullptr;
}

OrtStatus* parallel_for(const OrtKernelContext* context, void (*task)(void*, size_t), size_t total, size_t,
                        void* data) {
    std::atomic<size_t> next{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < context->threads; ++i) {
        threads.emplace_back([&] {
            for (size_t index = next++; index < total; index = next++) {
                task(data, index);
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    return nullptr;
}

using Function = void (*)();
using Table = std::array<Function, 300>;

template <class Entry> void set(Table& table, size_t index, Entry entry) {
    table[index] = reinterpret_cast<Function>(entry);
}

Table make_table() {
    using E = OrtEntries;
    Table table;
    table.fill([] { fail("an entry that the header does not list was called"); });
    set(table, 0, E::create_status_type(make_status));
    set(table, 26, E::create_domain_type([](const char* name, OrtCustomOpDomain** domain) -> OrtStatus* {
            expect(std::string(name) == "lct", "the domain's name");
            *domain = new OrtCustomOpDomain;
            return nullptr;
        }));
    set(table, 27, E::add_operator_type([](OrtCustomOpDomain* domain, const OrtCustomOp* op) -> OrtStatus* {
            domain->operators.push_back(op);
            return nullptr;
        }));
    set(table, 28,
        E::add_domain_type([](OrtSessionOptions* options, OrtCustomOpDomain* domain) -> OrtStatus* {
            options->domains.push_back(domain);
            return nullptr;
        }));
    set(table, 51, E::get_data_type([](OrtValue* value, void** data) -> OrtStatus* {
            *data = value->data;
            return nullptr;
        }));
    set(table, 61, E::get_rank_type([](const OrtTensorTypeAndShapeInfo* shape, size_t* rank) -> OrtStatus* {
            *rank = shape->sizes.size();
            return nullptr;
        }));
    set(table, 62,
        E::get_dimensions_type(
            [](const OrtTensorTypeAndShapeInfo* shape, int64_t* sizes, size_t rank) -> OrtStatus* {
                std::copy_n(shape->sizes.begin(), rank, sizes);
                return nullptr;
            }));
    set(table, 65,
        E::get_shape_type([](const OrtValue* value, OrtTensorTypeAndShapeInfo** shape) -> OrtStatus* {
            *shape = new OrtTensorTypeAndShapeInfo{value->sizes};
            return nullptr;
        }));
    set(table, 85, E::get_float_type([](const OrtKernelInfo* info, const char* name, float* value) {
            return find_attribute(info->floats, name, value);
        }));
    set(table, 86, E::get_int_type([](const OrtKernelInfo* info, const char* name, int64_t* value) {
            return find_attribute(info->integers, name, value);
        }));
    set(table, 90,
        E::get_input_type(
            [](const OrtKernelContext* context, size_t index, const OrtValue** value) -> OrtStatus* {
                *value = &context->inputs.at(index);
                return nullptr;
            }));
    set(table, 91,
        E::get_output_type([](OrtKernelContext* context, size_t index, const int64_t* sizes, size_t rank,
                              OrtValue** value) -> OrtStatus* {
            *value = index < context->outputs.size() ? &context->outputs[index] : nullptr;
            if (*value != nullptr) {
                expect(std::vector(sizes, sizes + rank) == (*value)->sizes, "the output's shape");
            }
            return nullptr;
        }));
    set(table, 93, E::release_status_type(release_status));
    set(table, 99, E::release_shape_type([](OrtTensorTypeAndShapeInfo* shape) { delete shape; }));
    set(table, 268,
        E::get_input_shape_type(
            [](const OrtShapeInferContext* context, size_t index,
               OrtTensorTypeAndShapeInfo** shape) -> OrtStatus* {
                if (index >= context->inputs.size()) {
                    return make_status(kOrtFail, "no shape");
                }
                *shape = const_cast<OrtTensorTypeAndShapeInfo*>(&context->inputs[index]);
                return nullptr;
            }));
    set(table, 270,
        E::set_output_shape_type([](const OrtShapeInferContext* context, size_t index,
                                    const OrtTensorTypeAndShapeInfo* shape) -> OrtStatus* {
            const_cast<OrtShapeInferContext*>(context)->outputs[index] = *shape;
            return nullptr;
        }));
    set(table, 274, E::parallel_for_type(parallel_for));
    return table;
}

const Table table = make_table();

const OrtApi* current_api(uint32_t) { return reinterpret_cast<const OrtApi*>(table.data()); }
const OrtApi* old_api(uint32_t version) { return version > 17 ? nullptr : current_api(version); }

// ---------------------------------------------------------------------------------------------------
// Operators, and what they should give

using Doubles = std::vector<double>;

struct Case {
    size_t n, c, h, w, groups, block;
    int threads;

    size_t pixels() const { return h * w; }
    size_t size() const { return n * c * pixels(); }
    std::vector<int64_t> sizes() const {
        const std::vector<size_t> s = block == 0 ? std::vector{n, h, w, c} : std::vector{n, c, h, w};
        return {s.begin(), s.end()};
    }
    size_t at(size_t sample, size_t channel, size_t pixel) const {
        const size_t run = block == 0 ? c : block;
        return sample * c * pixels() + channel / run * run * pixels() + pixel * run + channel % run;
    }
    std::string name() const {
        std::string text;
        for (const size_t value : {n, c, h, w, groups, block, static_cast<size_t>(threads)}) {
            text += " " + std::to_string(value);
        }
        return text;
    }
};

template <class T> struct Quantization {
    std::vector<float> scales = {1, 1, 1};
    std::vector<uint8_t> zeros = {0, 0, 0};
};
template <> struct Quantization<uint8_t> {
    std::vector<float> scales = {0.04F, 0.03F, 0.05F};
    std::vector<uint8_t> zeros = {100, 120, 7};
};

template <class T> std::vector<T> random_tensor(size_t size, std::mt19937& random) {
    std::vector<T> values(size);
    for (T& value : values) {
        if constexpr (std::is_same_v<T, uint8_t>) {
            value = static_cast<T>(random());
        } else {
            value = std::normal_distribution<float>(0.3F, 1.0F)(random);
        }
    }
    return values;
}

// Of means (N, C).
Doubles gates_of(const Doubles& means, size_t groups, const std::vector<float>& w,
                 const std::vector<float>& b) {
    const size_t m = w.size() / groups;
    Doubles gates;
    for (size_t first = 0; first < means.size(); first += m) {
        double average = 0, variance = 0;
        for (size_t i = first; i < first + m; ++i) {
            average += means[i] / static_cast<double>(m);
        }
        for (size_t i = first; i < first + m; ++i) {
            variance += (means[i] - average) * (means[i] - average) / static_cast<double>(m);
        }
        for (size_t i = first; i < first + m; ++i) {
            const size_t c = i % w.size();
            const double normalised = (means[i] - average) / std::sqrt(variance + 1e-5);
            gates.push_back(1 / (1 + std::exp(-(w[c] * normalised + b[c]))));
        }
    }
    return gates;
}

void check_gates(const std::vector<float>& values, const Doubles& expected, const std::string& what) {
    for (size_t i = 0; i < expected.size(); ++i) {
        const bool both = std::isnan(values[i]) && std::isnan(expected[i]);  // the mean of no pixels
        expect(both || std::abs(values[i] - expected[i]) <= 1e-5, what);
    }
}

template <class T> struct Problem {
    Case shape;
    Quantization<T> quantization;
    std::vector<T> x, identity;
    std::vector<float> w, b, gate;

    explicit Problem(const Case& shape) : shape(shape) {
        std::mt19937 random(1);
        x = random_tensor<T>(shape.size(), random);
        identity = random_tensor<T>(shape.size(), random);
        w = random_tensor<float>(shape.c, random);
        b = random_tensor<float>(shape.c, random);
        gate = random_tensor<float>(shape.n * shape.c, random);
    }
    double real(const std::vector<T>& values, size_t which, size_t at) const {
        return quantization.scales[which] * (static_cast<double>(values[at]) - quantization.zeros[which]);
    }
    double mean(size_t sample, size_t channel) const {
        double sum = 0;
        for (size_t p = 0; p < shape.pixels(); ++p) {
            sum += real(x, 0, shape.at(sample, channel, p));
        }
        return sum / static_cast<double>(shape.pixels());
    }
    Doubles attention() const {
        Doubles means;
        for (size_t i = 0; i < shape.n * shape.c; ++i) {
            means.push_back(mean(i / shape.c, i % shape.c));
        }
        return gates_of(means, shape.groups, w, b);
    }
    // Whether y is right, up to an error of the gate of 10⁻⁵, and of 1/25 of a step in bytes.
    void check(const T* y, const Doubles& gates, const std::string& what) const {
        for (size_t i = 0; i < shape.n * shape.c; ++i) {
            for (size_t p = 0; p < shape.pixels(); ++p) {
                const size_t at = shape.at(i / shape.c, i % shape.c, p);
                const double term = real(x, 0, at), other = real(identity, 1, at);
                const double value = std::max(term * gates[i] + other, 0.0);
                const double error = 1e-5 * (std::abs(term) + std::abs(other));
                if constexpr (std::is_same_v<T, uint8_t>) {
                    const double step = quantization.scales[2], zero = quantization.zeros[2];
                    const double exact = std::min(value / step + zero, 255.0);
                    expect(std::abs(y[at] - exact) <= 0.54 + error / step, what);
                } else {
                    expect(std::abs(y[at] - value) <= error, what);
                }
            }
        }
    }
};

const OrtCustomOp& find(const OrtSessionOptions& options, const std::string& name) {
    for (const OrtCustomOp* op : options.domains.at(0)->operators) {
        if (op->get_name(op) == name) {
            return *op;
        }
    }
    fail("no operator " + name);
}

std::string take_message(OrtStatus* status) {
    if (status == nullptr) {
        return "";
    }
    std::string message = status->message;
    release_status(status);
    return message;
}

// Creates a kernel, runs it once and destroys it; returns the error's message.
std::string run(const OrtCustomOp& op, const OrtKernelInfo& info, OrtKernelContext& context) {
    void* kernel = nullptr;
    const std::string message = take_message(op.create_kernel_2(&op, current_api(18), &info, &kernel));
    if (!message.empty()) {
        return message;
    }
    OrtStatus* status = op.compute_2(kernel, &context);
    op.destroy(kernel);
    return take_message(status);
}

OrtKernelInfo attributes(const Case& shape) {
    return {{{"block", shape.block}, {"groups", shape.groups}}, {{"epsilon", 1e-5F}}};
}

template <class T> OrtValue value(std::vector<int64_t> sizes, std::vector<T>& data) {
    return {sizes, data.data()};
}

enum class Output { apart, over_x, over_identity };

// With a gate of its size, the node has it as an output.
template <class T>
OrtKernelContext context_of(Problem<T>& problem, bool attends, std::vector<T>& y, std::vector<float>& gate) {
    const Case& s = problem.shape;
    const auto c = static_cast<int64_t>(s.c), n = static_cast<int64_t>(s.n);
    std::vector<OrtValue> inputs = {value(s.sizes(), problem.x), value(s.sizes(), problem.identity)};
    if (attends) {
        inputs.insert(inputs.end(), {value({c}, problem.w), value({c}, problem.b)});
    } else {
        inputs.push_back(value({n, c}, problem.gate));
    }
    if (std::is_same_v<T, uint8_t>) {
        inputs.push_back(value({3}, problem.quantization.scales));
        inputs.push_back(value({3}, problem.quantization.zeros));
    }
    std::vector<OrtValue> outputs = {value(s.sizes(), y)};
    if (gate.size() == s.n * s.c) {
        outputs.push_back(value({n, c}, gate));
    }
    return {inputs, outputs, s.threads};
}

template <class T>
void check_operator(const OrtSessionOptions& options, const Case& shape, bool attends, Output to) {
    Problem<T> problem(shape);
    const Problem<T> before = problem;
    const std::string name =
        std::string(attends ? "Attn" : "GateAdd") + (std::is_same_v<T, uint8_t> ? "Q" : "");
    std::vector<T> apart(shape.size());
    std::vector<T>& over = to == Output::over_x ? problem.x : problem.identity;
    std::vector<T>& y = to == Output::apart ? apart : over;
    std::vector<float> gate(attends && to != Output::over_x ? shape.n * shape.c : 0);
    OrtKernelContext context = context_of(problem, attends, y, gate);
    const std::string message = run(find(options, name), attributes(shape), context);
    expect(message.empty(), name + shape.name() + ": " + message);
    const Doubles gates = attends ? before.attention() : Doubles(before.gate.begin(), before.gate.end());
    before.check(y.data(), gates, name + shape.name() + " gives a wrong value");
    if (!gate.empty()) {
        check_gates(gate, gates, name + shape.name() + " gives a wrong gate");
    }
}

// The last three: more than the cache's share for (H, W, C), and one group, in which threads go step by step.
const std::vector<Case> cases = {
    {2, 48, 5, 7, 6, 0, 4},  {2, 48, 5, 7, 6, 1, 4},     {2, 48, 5, 7, 6, 8, 4},    {2, 48, 5, 7, 6, 16, 4},
    {3, 30, 3, 3, 10, 0, 2}, {3, 35, 9, 1, 5, 1, 2},     {1, 64, 20, 20, 64, 8, 3}, {1, 160, 17, 1, 2, 16, 3},
    {1, 1, 1, 1, 1, 0, 1},   {2, 200, 4, 4, 25, 0, 4},   {2, 3, 30, 30, 1, 1, 4},   {0, 16, 4, 4, 4, 16, 2},
    {2, 16, 0, 4, 4, 16, 2}, {2, 256, 50, 50, 64, 0, 4}, {1, 64, 20, 20, 1, 16, 4}, {1, 50, 20, 20, 1, 1, 4},
};

void check_values(const OrtSessionOptions& options) {
    for (const Case& shape : cases) {
        for (const bool attends : {true, false}) {
            for (const Output to : {Output::apart, Output::over_x, Output::over_identity}) {
                check_operator<float>(options, shape, attends, to);
                check_operator<uint8_t>(options, shape, attends, to);
            }
        }
    }
}

// The gate hoisted before a 1x1 convolution; inputs and outputs in blocks.
struct Hoist {
    size_t n, i, o, h, w, groups, block;
    int threads;

    OrtKernelInfo attributes() const {
        return {{{"block", block}, {"groups", groups}}, {{"epsilon", 1e-5F}}};
    }
    size_t weight_at(size_t output, size_t input) const {
        return output / block * block * i + input * block + output % block;
    }
};

struct HoistProblem {
    Hoist shape;
    std::vector<float> u, weights, bias, w, b, gated_weights, gated_bias, gate;

    HoistProblem(const Hoist& shape, bool with_gate)
        : shape(shape), gated_weights(shape.n * shape.o * shape.i), gated_bias(shape.n * shape.o),
          gate(with_gate ? shape.n * shape.o : 0) {
        std::mt19937 random(1);
        u = random_tensor<float>(shape.n * shape.i * shape.h * shape.w, random);
        weights = random_tensor<float>(shape.o * shape.i, random);
        bias = random_tensor<float>(shape.o, random);
        w = random_tensor<float>(shape.o, random);
        b = random_tensor<float>(shape.o, random);
    }
    OrtKernelContext context() {
        const auto n = static_cast<int64_t>(shape.n), i = static_cast<int64_t>(shape.i),
                   o = static_cast<int64_t>(shape.o), h = static_cast<int64_t>(shape.h),
                   width = static_cast<int64_t>(shape.w);
        std::vector<OrtValue> outputs = {value({n * o, i, 1, 1}, gated_weights), value({n * o}, gated_bias)};
        if (!gate.empty()) {
            outputs.push_back(value({n, o}, gate));
        }
        return {{value({n, i, h, width}, u), value({o, i, 1, 1}, weights), value({o}, bias), value({o}, w),
                 value({o}, b)},
                outputs,
                shape.threads};
    }
    Doubles expected_gates() const {
        const size_t pixels = shape.h * shape.w;
        const Case layout = {shape.n, shape.i, shape.h, shape.w, 1, shape.block, 1};
        Doubles means;
        for (size_t row = 0; row < shape.n * shape.o; ++row) {
            double mean = bias[row % shape.o];
            for (size_t i = 0; i < shape.i; ++i) {
                double sum = 0;
                for (size_t p = 0; p < pixels; ++p) {
                    sum += u[layout.at(row / shape.o, i, p)];
                }
                mean += sum / static_cast<double>(pixels) * weights[shape.weight_at(row % shape.o, i)];
            }
            means.push_back(mean);
        }
        return gates_of(means, shape.groups, w, b);
    }
    void check() const {
        const Doubles gates = expected_gates();
        for (size_t row = 0; row < gates.size(); ++row) {
            const size_t o = row % shape.o, sample = row / shape.o * shape.o * shape.i;
            const double gate = gates[row];
            expect(std::abs(gated_bias[row] - gate * bias[o]) <= 1e-5 * std::abs(bias[o]), "a gated bias");
            for (size_t i = 0; i < shape.i; ++i) {
                const size_t at = shape.weight_at(o, i);
                const double error = std::abs(gated_weights[sample + at] - gate * weights[at]);
                expect(error <= 1e-5 * std::abs(weights[at]), "a gated weight");
            }
        }
        if (!gate.empty()) {
            check_gates(gate, gates, "GateWeights gives a wrong gate");
        }
    }
};

// The second and the last: ranges of pixels, and one group.
const std::vector<Hoist> hoists = {
    {2, 32, 48, 5, 7, 6, 16, 4}, {1, 16, 64, 48, 48, 8, 16, 4}, {3, 24, 40, 3, 3, 10, 8, 2},
    {1, 8, 8, 1, 1, 8, 8, 1},    {0, 16, 16, 4, 4, 4, 16, 2},   {2, 64, 512, 6, 6, 1, 8, 4},
};

void check_weights(const OrtSessionOptions& options) {
    for (const Hoist& shape : hoists) {
        for (const bool with_gate : {false, true}) {
            HoistProblem problem(shape, with_gate);
            OrtKernelContext context = problem.context();
            const std::string message = run(find(options, "GateWeights"), shape.attributes(), context);
            expect(message.empty(), "GateWeights: " + message);
            problem.check();
        }
    }
}

void expect_error(const std::string& message, const std::string& part) {
    expect(message.find(part) != std::string::npos, "not '" + part + "' but '" + message + "'");
}

void check_errors(const OrtSessionOptions& options) {
    const Case shape = {2, 48, 5, 7, 6, 16, 2};
    const OrtCustomOp& op = find(options, "AttnQ");
    Problem<uint8_t> problem(shape);
    std::vector<uint8_t> y(shape.size());
    std::vector<float> no_gate;
    const OrtKernelContext right = context_of(problem, true, y, no_gate);
    for (const char* name : {"block", "groups", "epsilon"}) {
        OrtKernelInfo info = attributes(shape);
        info.integers.erase(name);
        info.floats.erase(name);
        OrtKernelContext context = right;
        expect_error(run(op, info, context), std::string("needs the attribute ") + name);
    }
    const std::vector<std::pair<const char*, int64_t>> wrong = {{"block", 3}, {"groups", 0}, {"groups", 7}};
    for (const auto& [name, number] : wrong) {
        OrtKernelInfo info = attributes(shape);
        info.integers[name] = number;
        OrtKernelContext context = right;
        expect_error(run(op, info, context), "lct.AttnQ: ");
    }
    for (size_t input = 0; input < right.inputs.size(); ++input) {
        OrtKernelContext context = right;
        context.inputs[input].sizes = {1, 2, 3, 4, 5, 6};
        expect_error(run(op, attributes(shape), context), "lct.AttnQ: ");
    }
}

void check_weight_errors(const OrtSessionOptions& options) {
    const OrtCustomOp& op = find(options, "GateWeights");
    HoistProblem problem({2, 32, 48, 5, 7, 6, 16, 2}, false);
    const std::vector<std::pair<const char*, int64_t>> wrong = {{"block", 1}, {"groups", 0}, {"groups", 7}};
    for (const auto& [name, number] : wrong) {
        OrtKernelInfo info = problem.shape.attributes();
        info.integers[name] = number;
        OrtKernelContext context = problem.context();
        expect_error(run(op, info, context), "lct.GateWeights: ");
    }
    for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{1, 2, 3, 4, 5, 6}, {2, 32, 0, 7}, {}}) {
        for (size_t input = 0; input < 5; ++input) {
            OrtKernelContext context = problem.context();
            context.inputs[input].sizes = sizes;
            expect_error(run(op, problem.shape.attributes(), context), "lct.GateWeights: ");
        }
    }
}

void check_inference(const OrtCustomOp& op) {
    const bool tail = std::string(op.get_name(&op)) != "GateWeights";
    for (const int64_t samples : {1, 2, -1}) {
        OrtShapeInferContext context{{{{samples, 16, 4, 4}}, {{32, 16, 1, 1}}, {{32}}}, {}};
        expect(op.infer_output_shape(&op, &context) == nullptr, "inference");
        if (tail) {
            expect(context.outputs.size() == 1, "what is inferred");
            expect(context.outputs[0].sizes == context.inputs[0].sizes, "the shape of Y");
        } else if (samples == 1) {
            expect(context.outputs.size() == 2, "what is inferred");
            expect(context.outputs[0].sizes == context.inputs[1].sizes, "the shape of the weights");
            expect(context.outputs[1].sizes == context.inputs[2].sizes, "the shape of the biases");
        } else {
            expect(context.outputs.empty(), "a shape that is not known");
        }
    }
    OrtShapeInferContext unknown{{}, {}};
    expect(op.infer_output_shape(&op, &unknown) == nullptr, "inference of an unknown shape");
    expect(unknown.outputs.empty(), "an unknown shape");
}

void check_descriptions(const OrtSessionOptions& options) {
    for (const OrtCustomOp* op : options.domains.at(0)->operators) {
        const std::string name = op->get_name(op);
        for (size_t i = 0; i < op->get_input_count(op); ++i) {
            expect(op->get_input_characteristic(op, i) == kOrtRequired, "an optional input");
            expect(op->get_input_memory(op, i) == kOrtDefaultMemory, "an input elsewhere");
        }
        const size_t required = name == "GateWeights" ? 2 : 1;
        const size_t outputs = op->get_output_count(op);
        expect(outputs == required + (name.rfind("GateAdd", 0) == 0 ? 0 : 1), "the number of outputs");
        for (size_t i = 0; i < outputs; ++i) {
            const OrtCharacteristic expected = i < required ? kOrtRequired : kOrtOptional;
            expect(op->get_output_characteristic(op, i) == expected, "which outputs are optional");
        }
        check_inference(*op);
        if (name == "GateWeights") {
            expect(op->get_may_inplace == nullptr, "weights over an input");
            continue;
        }
        int *from = nullptr, *to = nullptr;
        const size_t pairs = op->get_may_inplace(&from, &to);
        expect(pairs == 2 && from[0] == 0 && from[1] == 1 && to[0] == 0 && to[1] == 0, "pairs");
        op->release_may_inplace(from, to);
    }
}

// As several sessions do that start at once.
void check_registration(OrtSessionOptions& options) {
    const OrtApiBase base{current_api, nullptr}, old{old_api, nullptr};
    expect_error(take_message(RegisterCustomOps(&options, &old)), "need onnxruntime 1.18 or newer");
    std::vector<OrtSessionOptions> several(4);
    std::vector<std::thread> threads;
    for (OrtSessionOptions& each : several) {
        threads.emplace_back([&] { expect(RegisterCustomOps(&each, &base) == nullptr, "registration"); });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    options = several.front();
    expect(options.domains.at(0)->operators.size() == 5, "five operators");
    expect(several.back().domains == options.domains, "one domain for all");
}

}  // namespace

int main() {
    OrtSessionOptions options;
    check_registration(options);
    check_descriptions(options);
    check_values(options);
    check_weights(options);
    check_errors(options);
    check_weight_errors(options);
    expect(statuses == 0, "a status was not released");
    std::puts("ok");
}
