//! Numbers that may be unknown when the model is read, as polynomials over atoms.
//!
//! Equal polynomials have equal handles, so that `batch * 12` computed at two places is seen to be one number. An atom is
//! a dim of which nothing is known, a name from the model, or a function that polynomials cannot express.

use std::{collections::HashMap, fmt::Write};

/// One dim of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SymDim {
    /// A number.
    Known(usize),
    /// The same symbol is the same number in one run.
    Symbol(u32),
    /// Nothing is known. Inference itself never leaves this: it gives a symbol of its own instead.
    Unknown,
}

/// One element of an integer tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SymInt {
    /// A number.
    Known(i64),
    /// The same symbol is the same number in one run, also where it is a [`SymDim`].
    Symbol(u32),
    /// Nothing is known.
    Unknown,
}

impl SymDim {
    /// The number, if it is known.
    pub fn known(self) -> Option<usize> {
        match self {
            Self::Known(n) => Some(n),
            _ => None,
        }
    }
}

impl SymInt {
    /// The number, if it is known.
    pub fn known(self) -> Option<i64> {
        match self {
            Self::Known(n) => Some(n),
            _ => None,
        }
    }

    /// As a dim; a negative number is none.
    pub fn dim(self) -> SymDim {
        match self {
            Self::Known(n) => usize::try_from(n).map_or(SymDim::Unknown, SymDim::Known),
            Self::Symbol(s) => SymDim::Symbol(s),
            Self::Unknown => SymDim::Unknown,
        }
    }
}

impl From<SymDim> for SymInt {
    fn from(d: SymDim) -> Self {
        match d {
            SymDim::Known(n) => i64::try_from(n).map_or(Self::Unknown, Self::Known),
            SymDim::Symbol(s) => Self::Symbol(s),
            SymDim::Unknown => Self::Unknown,
        }
    }
}

/// Functions that polynomials cannot express. Each is a function of its arguments alone: equal arguments, equal result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Func {
    /// Quotient rounded down.
    FloorDiv,
    /// Quotient rounded towards zero.
    TruncDiv,
    /// Remainder with the sign of the divisor.
    Mod,
    /// The smaller.
    Min,
    /// The larger.
    Max,
    /// What two dims broadcast to.
    Broadcast,
    /// A dim of a pool with `ceil_mode`; the arguments are the dim and the window.
    CeilWindow,
    /// A dim times a float (its bits), rounded down.
    Scale,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Atom {
    Fresh(usize),
    Named(String),
    Call(Func, Vec<SymInt>),
}

/// Products of atoms (sorted; none for the constant term) with their factors; sorted, no factor is 0.
type Poly = Vec<(Vec<u32>, i64)>;

/// Larger polynomials become symbols of their own.
const MOST_TERMS: usize = 8;
/// As [`MOST_TERMS`], for the atoms in one product.
const MOST_FACTORS: usize = 8;

/// The symbols of a model.
#[derive(Debug, Clone, Default)]
pub(super) struct Symbols {
    polys: Vec<Poly>,
    poly_ids: HashMap<Poly, u32>,
    atoms: Vec<(Atom, bool)>,
    atom_ids: HashMap<Atom, u32>,
}

impl Symbols {
    /// A dim of which nothing is known.
    pub(super) fn fresh(&mut self) -> SymDim {
        let atom = Atom::Fresh(self.atoms.len());
        self.atom(atom, true).dim()
    }

    /// The dim that a model calls `name`.
    pub(super) fn named(&mut self, name: &str) -> SymDim {
        self.atom(Atom::Named(name.to_owned()), true).dim()
    }

    /// A function of the arguments; unknown where one of them is.
    pub(super) fn call(&mut self, func: Func, mut args: Vec<SymInt>) -> SymInt {
        if args.contains(&SymInt::Unknown) {
            return SymInt::Unknown;
        }
        if matches!(func, Func::Min | Func::Max | Func::Broadcast) {
            args.sort_unstable();
        }
        let natural = match func {
            Func::Broadcast | Func::CeilWindow | Func::Scale => true,
            Func::Max => args.iter().any(|&a| self.is_natural(a)),
            _ => args.iter().all(|&a| self.is_natural(a)),
        };
        self.atom(Atom::Call(func, args), natural)
    }

    fn atom(&mut self, atom: Atom, natural: bool) -> SymInt {
        let next = self.atoms.len() as u32;
        let id = *self.atom_ids.entry(atom.clone()).or_insert(next);
        if id == next {
            self.atoms.push((atom, natural));
        }
        self.intern(vec![(vec![id], 1)])
    }

    fn poly(&self, a: SymInt) -> Option<Poly> {
        match a {
            SymInt::Known(0) => Some(Vec::new()),
            SymInt::Known(n) => Some(vec![(Vec::new(), n)]),
            SymInt::Symbol(s) => self.polys.get(s as usize).cloned(),
            SymInt::Unknown => None,
        }
    }

    fn intern(&mut self, poly: Poly) -> SymInt {
        match poly.as_slice() {
            [] => return SymInt::Known(0),
            [(product, n)] if product.is_empty() => return SymInt::Known(*n),
            _ => {}
        }
        if poly.len() > MOST_TERMS || poly.iter().any(|(p, _)| p.len() > MOST_FACTORS) {
            return SymInt::Unknown;
        }
        let next = self.polys.len() as u32;
        let id = *self.poly_ids.entry(poly.clone()).or_insert(next);
        if id == next {
            self.polys.push(poly);
        }
        SymInt::Symbol(id)
    }

    /// Collects terms of equal products.
    fn collect(&mut self, mut terms: Poly) -> SymInt {
        terms.sort_unstable();
        let mut poly: Poly = Vec::with_capacity(terms.len());
        for (product, n) in terms {
            match poly.last_mut() {
                Some((last, sum)) if *last == product => match sum.checked_add(n) {
                    Some(total) => *sum = total,
                    None => return SymInt::Unknown,
                },
                _ => poly.push((product, n)),
            }
        }
        poly.retain(|&(_, n)| n != 0);
        self.intern(poly)
    }

    /// The sum.
    pub(super) fn add(&mut self, a: SymInt, b: SymInt) -> SymInt {
        let (Some(mut a), Some(b)) = (self.poly(a), self.poly(b)) else { return SymInt::Unknown };
        a.extend(b);
        self.collect(a)
    }

    /// The difference.
    pub(super) fn sub(&mut self, a: SymInt, b: SymInt) -> SymInt {
        let negative = self.mul(b, SymInt::Known(-1));
        self.add(a, negative)
    }

    /// The product.
    pub(super) fn mul(&mut self, a: SymInt, b: SymInt) -> SymInt {
        let (Some(a), Some(b)) = (self.poly(a), self.poly(b)) else { return SymInt::Unknown };
        let mut terms = Vec::with_capacity(a.len() * b.len());
        for (p, m) in &a {
            for (q, n) in &b {
                let Some(factor) = m.checked_mul(*n) else { return SymInt::Unknown };
                let mut product = [p.as_slice(), q].concat();
                product.sort_unstable();
                terms.push((product, factor));
            }
        }
        self.collect(terms)
    }

    /// The product of all.
    pub(super) fn product(&mut self, all: impl IntoIterator<Item = SymInt>) -> SymInt {
        all.into_iter().fold(SymInt::Known(1), |p, n| self.mul(p, n))
    }

    /// The quotient if it is a polynomial with whole factors, for a divisor of one term.
    pub(super) fn exact_div(&mut self, a: SymInt, b: SymInt) -> Option<SymInt> {
        if a == b && self.poly(a).is_some_and(|p| !p.is_empty()) {
            return Some(SymInt::Known(1));
        }
        let [(divisor, n)] = <[_; 1]>::try_from(self.poly(b)?).ok()?;
        let mut quotient = self.poly(a)?;
        for (product, factor) in &mut quotient {
            if factor.checked_rem(n)? != 0 {
                return None;
            }
            *factor /= n;
            for atom in &divisor {
                let at = product.iter().position(|x| x == atom)?;
                product.remove(at);
            }
        }
        Some(self.collect(quotient))
    }

    /// The quotient, rounded by `func` ([`Func::FloorDiv`] or [`Func::TruncDiv`]).
    pub(super) fn div(&mut self, func: Func, a: SymInt, b: SymInt) -> SymInt {
        if let (SymInt::Known(a), SymInt::Known(b)) = (a, b) {
            let Some(quotient) = a.checked_div(b) else { return SymInt::Unknown };
            let down = func == Func::FloorDiv && a % b != 0 && (a < 0) != (b < 0);
            return SymInt::Known(quotient - i64::from(down));
        }
        if let Some(quotient) = self.exact_div(a, b) {
            return quotient;
        }
        let (a, b) = self.reduced(a, b);
        self.call(func, vec![a, b])
    }

    /// A fraction without the whole number that divides both of its parts, for a divisor that is a number.
    fn reduced(&mut self, a: SymInt, b: SymInt) -> (SymInt, SymInt) {
        let (Some(above), SymInt::Known(n @ 1..)) = (self.poly(a), b) else { return (a, b) };
        let by = above.iter().fold(n, |g, &(_, factor)| gcd(g, factor));
        let above = above.into_iter().map(|(p, factor)| (p, factor / by)).collect();
        (self.collect(above), SymInt::Known(n / by))
    }

    /// The smaller.
    pub(super) fn min(&mut self, a: SymInt, b: SymInt) -> SymInt {
        if self.at_least(a, b) {
            b
        } else if self.at_least(b, a) {
            a
        } else {
            self.call(Func::Min, vec![a, b])
        }
    }

    /// The larger.
    pub(super) fn max(&mut self, a: SymInt, b: SymInt) -> SymInt {
        if self.at_least(a, b) {
            a
        } else if self.at_least(b, a) {
            b
        } else {
            self.call(Func::Max, vec![a, b])
        }
    }

    /// Whether `a >= b` is certain.
    pub(super) fn at_least(&mut self, a: SymInt, b: SymInt) -> bool {
        if let (SymInt::Known(a), SymInt::Known(b)) = (a, b) {
            return a >= b;
        }
        let difference = self.sub(a, b);
        self.is_natural(difference)
    }

    /// Whether the number is certainly 0 or more.
    pub(super) fn is_natural(&self, a: SymInt) -> bool {
        let Some(poly) = self.poly(a) else { return false };
        poly.iter().all(|(p, n)| *n >= 0 && p.iter().all(|&atom| self.atoms[atom as usize].1))
    }

    /// Whether the two numbers certainly differ (`Some(false)`) or are certainly equal (`Some(true)`).
    pub(super) fn equal(&mut self, a: SymInt, b: SymInt) -> Option<bool> {
        let difference = self.sub(a, b);
        match difference {
            SymInt::Known(n) => Some(n == 0),
            SymInt::Unknown => None,
            SymInt::Symbol(_) => {
                // Of one sign and with a constant term: never 0.
                let apart = |s: &mut Self, d, n| {
                    let beyond = s.add(d, SymInt::Known(n));
                    s.is_natural(beyond)
                };
                let negated = self.sub(b, a);
                (apart(self, difference, -1) || apart(self, negated, -1)).then_some(false)
            }
        }
    }

    /// What a valid model's two dims broadcast to.
    pub(super) fn broadcast(&mut self, a: SymDim, b: SymDim) -> SymDim {
        match (a, b) {
            (a, b) if a == b => a,
            (SymDim::Known(1), d) | (d, SymDim::Known(1)) => d,
            (SymDim::Known(n), SymDim::Symbol(_)) | (SymDim::Symbol(_), SymDim::Known(n)) => SymDim::Known(n),
            (SymDim::Symbol(_), SymDim::Symbol(_)) => {
                self.absorbed(a, b).unwrap_or_else(|| self.call(Func::Broadcast, vec![a.into(), b.into()]).dim())
            }
            (SymDim::Known(n), SymDim::Unknown) | (SymDim::Unknown, SymDim::Known(n)) if n > 1 => SymDim::Known(n),
            _ => SymDim::Unknown,
        }
    }

    /// One of two dims that the other cannot change: what `a` broadcast to before, or a table's first `a` rows
    /// (`min(512, a)`), which is another number only where the broadcast fails.
    fn absorbed(&self, a: SymDim, b: SymDim) -> Option<SymDim> {
        let is_of = |outer: SymDim, inner: SymDim| {
            let (func, args) = self.as_call(outer.into())?;
            let has = args.contains(&inner.into());
            match func {
                Func::Broadcast if has => Some(outer),
                Func::Min if has && args.iter().any(|k| matches!(k, SymInt::Known(2..))) && args.len() == 2 => {
                    Some(inner)
                }
                _ => None,
            }
        };
        is_of(a, b).or_else(|| is_of(b, a))
    }

    /// The function that a symbol is, if it is one alone.
    fn as_call(&self, a: SymInt) -> Option<(Func, &[SymInt])> {
        let SymInt::Symbol(s) = a else { return None };
        match self.polys.get(s as usize)?.as_slice() {
            [(product, 1)] if product.len() == 1 => match self.atoms.get(product[0] as usize)? {
                (Atom::Call(func, args), _) => Some((*func, args)),
                _ => None,
            },
            _ => None,
        }
    }

    /// In words, for people: `batch`, `12*batch`, `?3`.
    pub(super) fn text(&self, a: SymInt) -> String {
        let Some(poly) = self.poly(a) else { return "?".to_owned() };
        let mut text = String::new();
        for (product, n) in &poly {
            let sign = if *n < 0 {
                "-"
            } else if text.is_empty() {
                ""
            } else {
                "+"
            };
            text.push_str(sign);
            let mut factors: Vec<String> = product.iter().map(|&a| self.atom_text(a)).collect();
            if n.unsigned_abs() != 1 || product.is_empty() {
                factors.insert(0, n.unsigned_abs().to_string());
            }
            text.push_str(&factors.join("*"));
        }
        if text.is_empty() { "0".to_owned() } else { text }
    }

    fn atom_text(&self, id: u32) -> String {
        match self.atoms.get(id as usize).map(|(a, _)| a) {
            Some(Atom::Named(name)) => name.clone(),
            Some(Atom::Call(func, args)) => {
                let mut text = format!("{func:?}(").to_lowercase();
                for (i, &a) in args.iter().enumerate() {
                    let _ = write!(text, "{}{}", if i > 0 { ", " } else { "" }, self.text(a));
                }
                text + ")"
            }
            _ => format!("?{id}"),
        }
    }
}

/// The greatest common divisor, at least 1 for a positive `a`.
fn gcd(mut a: i64, b: i64) -> i64 {
    let mut b = b.checked_abs().unwrap_or(1);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_polynomials_are_one_symbol() {
        let mut s = Symbols::default();
        let (b, t) = (SymInt::from(s.named("batch")), SymInt::from(s.fresh()));
        let twelve = SymInt::Known(12);
        let (left, right) = (s.mul(b, twelve), s.mul(twelve, b));
        assert_eq!(left, right);
        assert_eq!(s.exact_div(left, twelve), Some(b));
        let (p, q) = (s.product([b, t, twelve]), s.product([t, twelve, b]));
        assert_eq!(p, q);
        assert_eq!(s.exact_div(p, t), Some(left));
        let more = s.add(left, t);
        let back = s.sub(more, t);
        assert_eq!(back, right);
        assert_eq!(s.sub(b, b), SymInt::Known(0));
        assert_eq!(s.text(left), "12*batch");
    }

    #[test]
    fn what_is_certain_about_order() {
        let mut s = Symbols::default();
        let b = SymInt::from(s.named("batch"));
        let more = s.add(b, SymInt::Known(3));
        assert!(s.at_least(more, b) && !s.at_least(b, more));
        assert_eq!(s.min(more, b), b);
        assert_eq!(s.equal(b, SymInt::Known(-1)), Some(false));
        assert_eq!(s.equal(b, SymInt::Known(1)), None);
        assert_eq!(s.equal(more, SymInt::Known(2)), Some(false));
    }

    #[test]
    fn broadcasting_absorbs_what_cannot_differ() {
        let mut s = Symbols::default();
        let (a, b) = (s.named("a"), s.named("b"));
        let rows = s.min(SymInt::Known(512), a.into()).dim();
        assert_eq!((s.broadcast(a, rows), s.broadcast(rows, a)), (a, a));
        // A table of one row fits every length.
        let one = s.min(SymInt::Known(1), a.into()).dim();
        assert_ne!(s.broadcast(a, one), one);
        let both = s.broadcast(a, b);
        assert_eq!(s.broadcast(both, b), both);
    }

    #[test]
    fn overflow_is_unknown() {
        let mut s = Symbols::default();
        let big = SymInt::Known(i64::MAX);
        assert_eq!(s.add(big, big), SymInt::Unknown);
        assert_eq!(s.mul(big, big), SymInt::Unknown);
        assert_eq!(s.div(Func::TruncDiv, SymInt::Known(i64::MIN), SymInt::Known(-1)), SymInt::Unknown);
        assert_eq!(s.div(Func::FloorDiv, SymInt::Known(-3), SymInt::Known(2)), SymInt::Known(-2));
    }
}
