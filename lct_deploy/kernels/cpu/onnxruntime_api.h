// The part of onnxruntime's C interface that the operators use.
//
// onnxruntime hands a library a table of function pointers that is only ever appended to: an entry
// keeps its index for good, so that the table of a version holds all entries up to that version's.
// These declarations are of version 18 (onnxruntime 1.18) and hold with every later one.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtApi;  // the table: never a complete type here, its entries are read by index
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;  // null is success
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

struct OrtApiBase {
    const OrtApi* (*get_api)(uint32_t version);  // null where the runtime is older than `version`
    const char* (*get_version_string)();
};

constexpr uint32_t kOrtApiVersion = 18;

enum OrtErrorCode : int { kOrtFail = 1, kOrtInvalidArgument = 2 };
enum OrtElementType : int { kOrtFloat = 1, kOrtUint8 = 2 };
enum OrtCharacteristic : int { kOrtRequired = 0, kOrtOptional = 1 };
enum OrtMemoryType : int { kOrtDefaultMemory = 0 };

// What a library tells of one operator. onnxruntime reads the fields that `version` has.
struct OrtCustomOp {
    uint32_t version;
    void* (*create_kernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);  // see version 2
    const char* (*get_name)(const OrtCustomOp*);
    const char* (*get_execution_provider)(const OrtCustomOp*);  // null is the CPU
    OrtElementType (*get_input_type)(const OrtCustomOp*, size_t index);
    size_t (*get_input_count)(const OrtCustomOp*);
    OrtElementType (*get_output_type)(const OrtCustomOp*, size_t index);
    size_t (*get_output_count)(const OrtCustomOp*);
    void (*compute)(void* kernel, OrtKernelContext*);  // see version 2
    void (*destroy)(void* kernel);
    OrtCharacteristic (*get_input_characteristic)(const OrtCustomOp*, size_t index);
    OrtCharacteristic (*get_output_characteristic)(const OrtCustomOp*, size_t index);
    OrtMemoryType (*get_input_memory)(const OrtCustomOp*, size_t index);
    int (*get_variadic_input_min)(const OrtCustomOp*);
    int (*get_variadic_input_homogeneity)(const OrtCustomOp*);
    int (*get_variadic_output_min)(const OrtCustomOp*);
    int (*get_variadic_output_homogeneity)(const OrtCustomOp*);
    OrtStatus* (*create_kernel_2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
    OrtStatus* (*compute_2)(void* kernel, OrtKernelContext*);
    OrtStatus* (*infer_output_shape)(const OrtCustomOp*, OrtShapeInferContext*);
    int (*get_start_version)(const OrtCustomOp*);
    int (*get_end_version)(const OrtCustomOp*);
    // Pairs (input, output) that may share memory; the arrays are handed back to the function after.
    size_t (*get_may_inplace)(int** inputs, int** outputs);
    void (*release_may_inplace)(int* inputs, int* outputs);
    size_t (*get_alias_map)(int** inputs, int** outputs);
    void (*release_alias_map)(int* inputs, int* outputs);
};

// Index, name and type of each entry in use. Functions return null or a status to be passed on.
#define LCT_ORT_ENTRIES(ENTRY)                                                                         \
    ENTRY(0, create_status, OrtStatus* (*)(OrtErrorCode, const char* message))                         \
    ENTRY(26, create_domain, OrtStatus* (*)(const char* name, OrtCustomOpDomain**))                    \
    ENTRY(27, add_operator, OrtStatus* (*)(OrtCustomOpDomain*, const OrtCustomOp*))                    \
    ENTRY(28, add_domain, OrtStatus* (*)(OrtSessionOptions*, OrtCustomOpDomain*))                      \
    ENTRY(51, get_data, OrtStatus* (*)(OrtValue*, void**))                                             \
    ENTRY(61, get_rank, OrtStatus* (*)(const OrtTensorTypeAndShapeInfo*, size_t*))                     \
    ENTRY(62, get_dimensions, OrtStatus* (*)(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t rank)) \
    ENTRY(65, get_shape, OrtStatus* (*)(const OrtValue*, OrtTensorTypeAndShapeInfo**))                 \
    ENTRY(85, get_float, OrtStatus* (*)(const OrtKernelInfo*, const char* attribute, float*))          \
    ENTRY(86, get_int, OrtStatus* (*)(const OrtKernelInfo*, const char* attribute, int64_t*))          \
    ENTRY(90, get_input, OrtStatus* (*)(const OrtKernelContext*, size_t index, const OrtValue**))      \
    ENTRY(91, get_output,                                                                              \
          OrtStatus* (*)(OrtKernelContext*, size_t index, const int64_t*, size_t rank, OrtValue**))    \
    ENTRY(93, release_status, void (*)(OrtStatus*))                                                    \
    ENTRY(99, release_shape, void (*)(OrtTensorTypeAndShapeInfo*))                                     \
    ENTRY(268, get_input_shape,                                                                        \
          OrtStatus* (*)(const OrtShapeInferContext*, size_t index, OrtTensorTypeAndShapeInfo**))      \
    ENTRY(270, set_output_shape,                                                                       \
          OrtStatus* (*)(const OrtShapeInferContext*, size_t index, const OrtTensorTypeAndShapeInfo*)) \
    ENTRY(274, parallel_for,                                                                           \
          OrtStatus* (*)(const OrtKernelContext*, void (*task)(void* data, size_t index), size_t total, \
                         size_t batches, void* data))

// The entries in use, each under its name and with its type.
struct OrtEntries {
#define LCT_MEMBER(index, name, ...)           \
    using name##_type = __VA_ARGS__;           \
    static constexpr size_t name##_index = index; \
    name##_type name;
    LCT_ORT_ENTRIES(LCT_MEMBER)
#undef LCT_MEMBER

    explicit OrtEntries(const OrtApi* api) {
#define LCT_READ(index, name, ...) name = reinterpret_cast<name##_type>(table(api)[index]);
        LCT_ORT_ENTRIES(LCT_READ)
#undef LCT_READ
    }

    // Of a table of any version: what it takes to say that the version is too old.
    static create_status_type create_status_by(const OrtApi* api) {
        return reinterpret_cast<create_status_type>(table(api)[create_status_index]);
    }

private:
    using Function = void (*)();
    static const Function* table(const OrtApi* api) { return reinterpret_cast<const Function*>(api); }
};
