"""The exact counter against kernels whose counts are known by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from archc.kernels.counting.counted import AccessError
from archc.kernels.counting.counter import counting


@triton.jit
def double(x_ptr, y_ptr, length, SIZE: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    x = tl.load(x_ptr + index, mask=index < length, other=0.0)
    tl.store(y_ptr + index, 2 * x, mask=index < length)


@triton.jit
def scale_by_first(x_ptr, first_ptr, y_ptr, SIZE: tl.constexpr):
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y_ptr + index, tl.load(x_ptr + index) * tl.load(first_ptr))


@triton.jit
def product(a_ptr, b_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k)
    b = tl.load(b_ptr + k[:, None] * N + n)
    c = tl.dot(a, b, input_precision="ieee")
    tl.store(c_ptr + m[:, None] * N + n, tl.exp(c) + tl.exp2(tl.sum(c, 1))[:, None])


@triton.jit
def copy_by_descriptor(x, y_ptr, rows, columns, R: tl.constexpr, C: tl.constexpr):
    y = tl.make_tensor_descriptor(y_ptr, shape=[rows, columns], strides=[columns, 1], block_shape=[R, C])
    row = tl.program_id(0) * R
    y.store([row, 0], x.load([row, 0]))


@triton.jit
def add_atomically(x_ptr, sum_ptr, SIZE: tl.constexpr):
    index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.atomic_add(sum_ptr, tl.sum(tl.load(x_ptr + index)))


@triton.jit
def leave(x_ptr, y_ptr, offset, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(y_ptr + offset + index, tl.load(x_ptr + index))


@triton.jit
def copy_strided(x_ptr, y_ptr, stride, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(y_ptr + index, tl.load(x_ptr + index * stride))


@triton.jit
def all_write_first(y_ptr):
    tl.store(y_ptr, tl.program_id(0).to(tl.float32))


@triton.jit
def read_neighbour(x_ptr):
    program = tl.program_id(0)
    tl.store(x_ptr + program, tl.load(x_ptr + program + 1))


@triton.jit
def copy_pair(pair, y_ptr, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(y_ptr + index, tl.load(pair[0] + index) + tl.load(pair[1] + index))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_masked_edge_counts_only_what_is_under_the_mask(dtype: torch.dtype) -> None:
    x, y = torch.randn(100, dtype=dtype), torch.full((128,), torch.nan, dtype=dtype)
    with counting() as counted:
        double[(2,)](x, y, 100, 64)
    (launch,) = counted.launches
    size = dtype.itemsize
    assert (launch.name, launch.grid) == ("double", (2, 1, 1))
    assert (launch.requested_read, launch.requested_written) == (100 * size, 100 * size)
    assert (launch.distinct_read, launch.distinct_written) == (100 * size, 100 * size)
    x_traffic, y_traffic = launch.by_argument["x_ptr"], launch.by_argument["y_ptr"]
    assert (x_traffic.distinct_read, x_traffic.distinct_written) == (100 * size, 0)
    assert (y_traffic.distinct_read, y_traffic.distinct_written) == (0, 100 * size)
    assert (launch.flop, launch.exponentials, counted.others) == (0, 0, [])
    torch.testing.assert_close(y[:100], 2 * x)
    assert y[100:].isnan().all()


def test_what_every_program_reads_is_distinct_once() -> None:
    x, first, y = torch.randn(64), torch.randn(1), torch.empty(64)
    with counting() as counted:
        scale_by_first[(4,)](x, first, y, SIZE=16)
    (launch,) = counted.launches
    assert launch.by_argument["first_ptr"].requested_read == 16
    assert launch.by_argument["first_ptr"].distinct_read == 4
    assert (counted.requested, counted.distinct) == (2 * 256 + 16, 2 * 256 + 4)


def test_a_tensor_that_is_two_arguments_is_distinct_once_in_the_launch() -> None:
    x = torch.randn(64)
    with counting() as counted:
        copy_pair[(1,)]((x, x), torch.empty(64), SIZE=64)
    (launch,) = counted.launches
    assert [launch.by_argument[f"pair[{n}]"].distinct_read for n in (0, 1)] == [256, 256]
    assert (launch.requested_read, launch.distinct_read, launch.distinct_written) == (512, 256, 256)


def test_products_and_exponentials() -> None:
    a, b, c = 0.1 * torch.randn(16, 64), torch.randn(64, 32), torch.empty(16, 32)
    with counting() as counted:
        product[(1,)](a, b, c, 16, 32, 64)
    assert counted.flop == 2 * 16 * 32 * 64
    assert counted.exponentials == 16 * 32 + 16
    torch.testing.assert_close(c, (a @ b).exp() + (a @ b).sum(1, keepdim=True).exp2())


def test_descriptors_count_what_lies_inside_their_shape() -> None:
    x, y = torch.randn(20, 32), torch.full((20, 32), torch.nan)
    with counting() as counted:
        copy_by_descriptor[(2,)](TensorDescriptor.from_tensor(x, [16, 32]), y, 20, 32, R=16, C=32)
    (launch,) = counted.launches
    assert (launch.requested_read, launch.requested_written) == (20 * 32 * 4, 20 * 32 * 4)
    assert (launch.by_argument["x"].distinct_read, launch.by_argument["y_ptr"].distinct_written) == (
        2560,
        2560,
    )
    assert y.equal(x)


def test_atomics_read_and_write() -> None:
    x, total = torch.ones(64), torch.zeros(1)
    with counting() as counted:
        add_atomically[(4,)](x, total, SIZE=16)
    traffic = counted.launches[0].by_argument["sum_ptr"]
    assert (traffic.requested_read, traffic.requested_written) == (16, 16)
    assert (traffic.distinct_read, traffic.distinct_written) == (4, 4)
    assert total.item() == 64


@pytest.mark.parametrize(
    ("offset", "reach"),
    [(8, "offsets 64 to 95"), (-4, "offsets -16 to -1"), (1 << 20, "offsets 4194304 to 4194367")],
)
def test_a_store_out_of_bounds_is_found_and_not_carried_out(offset: int, reach: str) -> None:
    memory = torch.full((64,), 7.0)
    x, y = torch.zeros(16), memory[16:32]
    with pytest.raises(AccessError, match=f"leave, program 0 .* writes y_ptr out of bounds.*{reach}"):
        with counting():
            leave[(1,)](x, y, offset, SIZE=16)
    assert memory[:16].eq(7).all() and memory[32:].eq(7).all()


def test_a_load_from_the_gaps_of_a_view_is_found() -> None:
    memory = torch.arange(64.0)
    y = torch.empty(16)
    with counting() as counted:
        copy_strided[(1,)](memory[::2], y, 2, SIZE=16)
    assert y.equal(memory[:32:2]) and counted.launches[0].distinct_read == 64
    with pytest.raises(
        AccessError, match="reads x_ptr out of bounds: offsets 4 to 63 are outside its elements"
    ):
        with counting():
            copy_strided[(1,)](memory[::2], y, 1, SIZE=16)


def test_races_between_programs_are_found() -> None:
    for kernel, text in (
        (all_write_first, "writes y_ptr at offset 0"),
        (read_neighbour, "writes x_ptr at offset 4"),
    ):
        with pytest.raises(AccessError, match=f"program 1 .*{text}, which another program touched: a race"):
            with counting():
                kernel[(3,)](torch.zeros(4))


def test_other_operations_count_unless_they_move_nothing() -> None:
    x = torch.randn(8, 16)
    with counting() as counted:
        y = torch.empty(16, 8)
        y.copy_(x.t())
        double[(1,)](x.contiguous(), y, 128, 128)
        y.view(-1)[3:].unsqueeze(0).detach()
        x.sum(0)
        x.t().contiguous()
        x[:1].expand(64, 16) + 1
        x.mul_(2)
        torch.zeros(4)
        torch.zeros_like(x)
        x.new_zeros(2)
        x[0, 0].item()
    found = [(other.name, other.read, other.written) for other in counted.others]
    assert found == [
        ("aten.copy_.default", 512, 512),
        ("aten.sum.dim_IntList", 512, 64),
        ("aten.clone.default", 512, 512),
        ("aten.add.Tensor", 64, 4096),
        ("aten.mul_.Tensor", 512, 512),
        ("aten.zeros.default", 0, 16),
        ("aten.zeros_like.default", 0, 512),
        ("aten.new_zeros.default", 0, 8),
        ("aten._local_scalar_dense.default", 4, 0),
    ]
    others = sum(read + written for _, read, written in found)
    assert counted.distinct == counted.launches[0].distinct + others == 1024 + others
    assert "double (1, 1, 1)" in counted.table() and "aten.sum.dim_IntList" in counted.table()


def test_an_operation_of_a_library_is_what_it_is_made_of() -> None:
    @torch.library.custom_op("archc_test_counter::double_sum", mutates_args=())
    def double_sum(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        double[(1,)](x, y, x.numel(), 64)
        return y.sum(0)

    def differentiate(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        return 2 * dy.expand(64)

    double_sum.register_autograd(differentiate)
    x = torch.randn(64, requires_grad=True)
    with counting() as counted:
        y = double_sum(x)
        y.backward()
    assert [launch.name for launch in counted.launches] == ["double"]
    assert [other.name for other in counted.others[:1]] == ["aten.sum.dim_IntList"]
    assert "aten.mul.Tensor" in [other.name for other in counted.others]


def test_everything_is_restored() -> None:
    from triton.runtime import interpreter

    watched = (interpreter, interpreter.InterpreterBuilder, interpreter.GridExecutor)
    before = [dict(vars(owner)) for owner in watched]
    with pytest.raises(AccessError), counting():
        leave[(1,)](torch.zeros(16), torch.zeros(16), 8, SIZE=16)
    with pytest.raises(RuntimeError, match="inside"), counting(), counting():
        pass
    assert [dict(vars(owner)) for owner in watched] == before
    y = torch.empty(16)
    leave[(1,)](torch.ones(16), y, 0, SIZE=16)
    assert y.eq(1).all()
