//! Arithmetic, element by element, in the type of the operands: each operation rounds once, as IEEE 754 says.
//!
//! Transcendental functions are computed in f64 and rounded: runtimes' own approximations differ from that, and from each
//! other, by a unit in the last place.

use super::{
    Eval,
    args::{Args, room, tensor},
    strided::{broadcast_dims, stretch},
};
use crate::{
    ir::{DType, Tensor},
    quant::pack,
};

pub(super) const EVALS: &[(&[&str], Eval)] = &[
    (&["Add", "Sub", "Mul", "Div", "Mod", "Pow"], |a| {
        let op = a.node.op_type.as_str();
        Some(vec![binary(op, a.tensor(0)?, a.tensor(1)?, a.int("fmod", 0) != 0)?])
    }),
    (&["Min", "Max", "Sum"], |a| {
        let op = a.node.op_type.as_str();
        let mut all = a.inputs.iter();
        let first = all.next()?.clone()?;
        Some(vec![
            all.try_fold(first, |acc, t| binary(if op == "Sum" { "Add" } else { op }, &acc, t.as_ref()?, false))?,
        ])
    }),
    (
        &[
            "Neg",
            "Abs",
            "Sign",
            "Sqrt",
            "Reciprocal",
            "Floor",
            "Ceil",
            "Round",
            "Relu",
            "Exp",
            "Log",
            "Erf",
            "Sin",
            "Cos",
            "Tanh",
            "Sigmoid",
        ],
        |a| Some(vec![unary(a.node.op_type.as_str(), a.tensor(0)?)?]),
    ),
    (&["Clip"], clip),
];

/// The elements of a tensor, in a type that can be computed in.
pub(super) enum Numbers {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I32(Vec<i32>),
    I64(Vec<i64>),
}

impl Numbers {
    pub(super) fn of(t: &Tensor) -> Option<Self> {
        fn read<const N: usize, T>(t: &Tensor, of: fn([u8; N]) -> T) -> Option<Vec<T>> {
            let bytes = t.bytes().ok()?;
            Some(bytes.chunks_exact(N).filter_map(|c| c.try_into().ok().map(of)).collect())
        }
        Some(match t.dtype() {
            DType::Float => Self::F32(read(t, f32::from_le_bytes)?),
            DType::Double => Self::F64(read(t, f64::from_le_bytes)?),
            DType::Int32 => Self::I32(read(t, i32::from_le_bytes)?),
            DType::Int64 => Self::I64(read(t, i64::from_le_bytes)?),
            _ => return None,
        })
    }

    pub(super) fn tensor(self, dims: &[usize]) -> Option<Tensor> {
        let (dtype, bytes) = match self {
            Self::F32(v) => (DType::Float, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Self::F64(v) => (DType::Double, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Self::I32(v) => (DType::Int32, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Self::I64(v) => (DType::Int64, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        tensor(dtype, dims, bytes)
    }
}

fn zip<T: Copy>(a: &[T], b: &[T], f: impl Fn(T, T) -> Option<T>) -> Option<Vec<T>> {
    a.iter().zip(b).map(|(&x, &y)| f(x, y)).collect()
}

fn map<T: Copy>(a: &[T], f: impl Fn(T) -> T) -> Vec<T> {
    a.iter().map(|&x| f(x)).collect()
}

/// Expands to the arms for one floating point type: what `op` does with `$x` and `$y`.
macro_rules! float_binary {
    ($op:expr, $fmod:expr, $a:expr, $b:expr) => {
        match $op {
            "Add" => zip($a, $b, |x, y| Some(x + y)),
            "Sub" => zip($a, $b, |x, y| Some(x - y)),
            "Mul" => zip($a, $b, |x, y| Some(x * y)),
            "Div" => zip($a, $b, |x, y| Some(x / y)),
            "Mod" if $fmod => zip($a, $b, |x, y| Some(x % y)),
            // Not f32::min: a NaN stays.
            "Min" => zip($a, $b, |x, y| Some(if x.is_nan() || x < y { x } else { y })),
            "Max" => zip($a, $b, |x, y| Some(if x.is_nan() || x > y { x } else { y })),
            "Pow" => zip($a, $b, |x, y| {
                Some(if y == 2.0 {
                    x * x
                } else if y == 3.0 {
                    x * x * x
                } else {
                    x.powf(y)
                })
            }),
            _ => None,
        }
    };
}

macro_rules! int_binary {
    ($op:expr, $fmod:expr, $a:expr, $b:expr) => {
        match $op {
            "Add" => zip($a, $b, |x, y| Some(x.wrapping_add(y))),
            "Sub" => zip($a, $b, |x, y| Some(x.wrapping_sub(y))),
            "Mul" => zip($a, $b, |x, y| Some(x.wrapping_mul(y))),
            "Div" => zip($a, $b, |x, y| x.checked_div(y)),
            "Mod" if $fmod => zip($a, $b, |x, y| x.checked_rem(y)),
            // The sign of the divisor.
            "Mod" => zip($a, $b, |x, y| x.checked_rem(y).map(|r| if r != 0 && (r < 0) != (y < 0) { r + y } else { r })),
            "Min" => zip($a, $b, |x, y| Some(x.min(y))),
            "Max" => zip($a, $b, |x, y| Some(x.max(y))),
            "Pow" => zip($a, $b, |x, y| x.checked_pow(u32::try_from(y).ok()?)),
            _ => None,
        }
    };
}

/// `op` on two tensors of one type (Pow: the exponent may be of another), broadcast.
pub(super) fn binary(op: &str, a: &Tensor, b: &Tensor, fmod: bool) -> Option<Tensor> {
    let dims = broadcast_dims(a.dims(), b.dims())?;
    room(a.dtype(), &dims)?;
    let b = if op == "Pow" && b.dtype() != a.dtype() { super::cast::cast(b, a.dtype())? } else { b.clone() };
    let (a, b) = (Numbers::of(&stretch(a, &dims)?)?, Numbers::of(&stretch(&b, &dims)?)?);
    let out = match (&a, &b) {
        (Numbers::F32(a), Numbers::F32(b)) => Numbers::F32(float_binary!(op, fmod, a, b)?),
        (Numbers::F64(a), Numbers::F64(b)) => Numbers::F64(float_binary!(op, fmod, a, b)?),
        (Numbers::I32(a), Numbers::I32(b)) => Numbers::I32(int_binary!(op, fmod, a, b)?),
        (Numbers::I64(a), Numbers::I64(b)) => Numbers::I64(int_binary!(op, fmod, a, b)?),
        _ => return None,
    };
    out.tensor(&dims)
}

/// The functions that are exact in every floating point type.
macro_rules! float_unary {
    ($op:expr, $a:expr) => {
        match $op {
            "Neg" => map($a, |x| -x),
            "Abs" => map($a, |x| x.abs()),
            "Sign" => map($a, |x| {
                if x > 0.0 {
                    1.0
                } else if x < 0.0 {
                    -1.0
                } else {
                    x
                }
            }),
            "Sqrt" => map($a, |x| x.sqrt()),
            "Reciprocal" => map($a, |x| 1.0 / x),
            "Floor" => map($a, |x| x.floor()),
            "Ceil" => map($a, |x| x.ceil()),
            "Round" => map($a, |x| x.round_ties_even()),
            "Relu" => map($a, |x| if x < 0.0 { 0.0 } else { x }),
            op => {
                let f = transcendental(op)?;
                $a.iter().map(|&x| f(x.into()) as _).collect()
            }
        }
    };
}

fn transcendental(op: &str) -> Option<fn(f64) -> f64> {
    Some(match op {
        "Exp" => f64::exp,
        "Log" => f64::ln,
        "Sin" => f64::sin,
        "Cos" => f64::cos,
        "Tanh" => f64::tanh,
        "Sigmoid" => |x| 1.0 / (1.0 + (-x).exp()),
        "Erf" => erf,
        _ => return None,
    })
}

/// The error function by the series `2/sqrt(pi) * exp(-x^2) * sum(2^n x^(2n+1) / (2n+1)!!)`, all of whose terms have one
/// sign; beyond 6 the result is 1 in f64.
fn erf(x: f64) -> f64 {
    if x.is_nan() || x.abs() > 6.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > sum.abs() * 1e-17 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp()
}

fn unary(op: &str, t: &Tensor) -> Option<Tensor> {
    let out = match Numbers::of(t)? {
        Numbers::F32(v) => Numbers::F32(float_unary!(op, v.as_slice())),
        Numbers::F64(v) => Numbers::F64(float_unary!(op, v.as_slice())),
        Numbers::I32(v) => Numbers::I32(match op {
            "Neg" => map(&v, i32::wrapping_neg),
            "Abs" => map(&v, i32::wrapping_abs),
            "Sign" => map(&v, i32::signum),
            _ => return None,
        }),
        Numbers::I64(v) => Numbers::I64(match op {
            "Neg" => map(&v, i64::wrapping_neg),
            "Abs" => map(&v, i64::wrapping_abs),
            "Sign" => map(&v, i64::signum),
            _ => return None,
        }),
    };
    out.tensor(t.dims())
}

/// Bounds are attributes before opset 11, then inputs.
fn clip(a: &Args<'_>) -> Option<Vec<Tensor>> {
    let x = a.tensor(0)?;
    if matches!(x.dtype(), DType::Int8 | DType::Uint8) {
        return clip_codes(a, x);
    }
    let bound = |name: &str, i: usize| match a.node.float(name) {
        Some(f) if x.dtype() == DType::Float => Some(Some(Tensor::from_f32(&[], &[f]))),
        Some(_) => None,
        None => Some(a.tensor(i).cloned()),
    };
    let mut out = x.clone();
    for (op, bound) in [("Max", bound("min", 1)?), ("Min", bound("max", 2)?)] {
        if let Some(bound) = bound {
            out = binary(op, &out, &bound, false).filter(|t| t.dims() == x.dims())?;
        }
    }
    Some(vec![out])
}

/// Of codes, as exporters of few bits write them.
fn clip_codes(a: &Args<'_>, x: &Tensor) -> Option<Vec<Tensor>> {
    let bound = |i: usize| match a.node.input(i) {
        Some(_) => Some(Some(a.tensor(i)?.scalar_i64()?)),
        None => Some(None),
    };
    let (lo, hi) = (bound(1)?.unwrap_or(-128), bound(2)?.unwrap_or(255));
    let codes = pack::unpack(x).ok()?;
    let clipped: Vec<i32> = codes.into_iter().map(|c| i64::from(c).max(lo).min(hi) as i32).collect();
    Some(vec![pack::pack(x.dtype(), x.dims(), &clipped).ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_at_known_points() {
        for (x, want) in
            [(0.0, 0.0), (0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (3.0, 0.999_977_909_503_001_4)]
        {
            assert!((erf(x) - want).abs() < 2e-15, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
    }

    #[test]
    fn integers_divide_towards_zero_and_never_by_zero() {
        let t = |v: &[i64]| Tensor::from_i64(&[v.len()], v);
        let run = |op, a: &[i64], b: &[i64]| binary(op, &t(a), &t(b), false).map(|t| t.to_i64().unwrap());
        assert_eq!(run("Div", &[-7, 7], &[2]), Some(vec![-3, 3]));
        assert_eq!(run("Mod", &[-7, 7], &[3]), Some(vec![2, 1]));
        assert_eq!(run("Div", &[1], &[0]), None);
        assert_eq!(run("Div", &[i64::MIN], &[-1]), None);
    }
}
