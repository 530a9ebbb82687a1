// A device whose memory is the CPU's: kernels are those of the CPU, but tensors of two devices do not meet.

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Sizes = c10::IntArrayRef;
using SymSizes = c10::SymIntArrayRef;

const c10::Device SECOND(c10::DeviceType::PrivateUse1, 0);
const c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* start = bytes ? std::malloc(bytes) : nullptr;
    return {start, start, &std::free, SECOND};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::Stream only() const { return c10::Stream(c10::Stream::DEFAULT, SECOND); }
  c10::DeviceType type() const override { return SECOND.type(); }
  c10::Device exchangeDevice(c10::Device) const override { return SECOND; }
  c10::Device getDevice() const override { return SECOND; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return only(); }
  c10::Stream getNewStream(c10::Device, int) const override { return only(); }
  c10::Stream exchangeStream(c10::Stream) const override { return only(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
};

// The same memory, seen as a tensor of the CPU.
Tensor here(const Tensor& tensor) {
  if (tensor.device().is_cpu()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

Tensor there(const Tensor& tensor) { return tensor.defined() ? tensor.to(SECOND) : tensor; }

Maybe here_with(const Maybe& tensor, const Tensor& first) {
  if (!tensor.has_value() || !tensor->defined()) return tensor;
  TORCH_CHECK(tensor->device() == first.device(), "Expected all tensors to be on the same device");
  return here(*tensor);
}

Tensor empty(Sizes size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(Sizes size, Sizes stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, c10::dtype_or_default(dtype));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  here(to).copy_(here(from).expand(to.sizes()));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar number(const Tensor& tensor) { return here(tensor).item(); }

Tensor as_strided(const Tensor& self, Sizes size, Sizes stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

const Tensor& resize(const Tensor& self, Sizes size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, size, format);
}

Tensor& set_part(Tensor& self, at::Storage storage, int64_t offset, Sizes size, Sizes stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_storage_offset(offset);
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return self;
}

Tensor& set_whole(Tensor& self, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / self.dtype().itemsize());
  return set_part(self, std::move(storage), 0, {count}, {1});
}

Tensor convolution(const Tensor& x, const Tensor& weight, const Maybe& bias, SymSizes stride, SymSizes padding,
                   SymSizes dilation, bool transposed, SymSizes output_padding, c10::SymInt groups) {
  return there(at::convolution_symint(here(x), *here_with(weight, x), here_with(bias, x), stride, padding, dilation,
                                      transposed, output_padding, groups));
}

Three convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, SymSizes stride,
                           SymSizes padding, SymSizes dilation, bool transposed, SymSizes output_padding,
                           c10::SymInt groups, std::array<bool, 3> wanted) {
  const c10::SymInt filters = transposed ? weight.sym_size(1) * groups : weight.sym_size(0);
  const auto [input, kernel, bias] =
      at::convolution_backward_symint(here(grad), here(x), here(weight), SymSizes(&filters, 1), stride, padding,
                                      dilation, transposed, output_padding, groups, wanted);
  return {there(input), there(kernel), there(bias)};
}

// The fallback would leave the running statistics, which its schema does not call mutable, as they were.
Three batch_norm(const Tensor& x, const Maybe& weight, const Maybe& bias, const Maybe& mean, const Maybe& variance,
                 bool training, double momentum, double eps) {
  const auto [result, own_mean, inverse] =
      at::native_batch_norm(here(x), here_with(weight, x), here_with(bias, x), here_with(mean, x),
                            here_with(variance, x), training, momentum, eps);
  return {there(result), there(own_mean), there(inverse)};
}

// Any other op runs on the CPU, unless its tensors are of two devices; numbers and indices may be the CPU's.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  bool second = false, cpu = false;
  const auto look = [&](const Tensor& tensor) {
    if (!tensor.defined()) return;
    second |= tensor.device() == SECOND;
    cpu |= tensor.device().is_cpu() && tensor.dim() > 0;
  };
  for (const auto& value : torch::jit::last(stack, op.schema().arguments().size())) {
    if (value.isTensor()) look(value.toTensor());
    if (value.isTensorList()) for (const Tensor& tensor : value.toTensorVector()) look(tensor);
  }
  TORCH_CHECK(!(second && cpu), "Expected all tensors to be on the same device: ", op.schema().name());
  at::native::cpu_fallback(op, stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", number);
  m.impl("as_strided", as_strided);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("resize_", resize);
  m.impl("unfold", at::native::unfold);
  m.impl("set_.source_Storage", set_whole);
  m.impl("set_.source_Storage_storage_offset", set_part);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("native_batch_norm", batch_norm);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { at::RegisterPrivateUse1HooksInterface(new Hooks()); }
