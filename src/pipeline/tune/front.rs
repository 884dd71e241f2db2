//! Which points are worth having, which is the best within the budgets, and which is the closest where none is.

use super::aims::{ALL, Aim, fits};
use crate::report::tune::{Budgets, Closest, Figures};

/// Points of measured speeds so near to each other are as fast: medians of brief turns differ by about as much from run to run.
const AS_FAST: f64 = 0.98;

/// For each point whether none of the others is as good in everything and better in something. Speeds are handed in, since a
/// search that shall not depend on the clock goes by those of the cost model. Of points that are all alike the first counts.
pub(super) fn front(points: &[Figures], speed: fn(&Figures) -> f64) -> Vec<bool> {
    let beats = |a: &Figures, b: &Figures| {
        let as_good = a.loss <= b.loss && a.noise <= b.noise && speed(a) >= speed(b) && a.bytes <= b.bytes;
        let better = a.loss < b.loss || a.noise < b.noise || speed(a) > speed(b) || a.bytes < b.bytes;
        (as_good, better)
    };
    let dominated = |(i, p): (usize, &Figures)| {
        let mut others = points.iter().enumerate().filter(|(j, _)| *j != i);
        others.any(|(j, q)| matches!(beats(q, p), (true, better) if better || j < i))
    };
    points.iter().enumerate().map(|p| !dominated(p)).collect()
}

/// The best point within the budgets: the fastest where a loss is allowed, and of those as fast the smallest; else that with the
/// least loss, and of those the fastest. Where speeds are measured, those within two percent of the fastest are as fast, so
/// that chance does not choose a larger or worse one.
pub(super) fn best(points: &[Figures], budgets: &Budgets, measured: bool) -> Option<usize> {
    let inside: Vec<usize> = (0..points.len()).filter(|&i| fits(budgets, &points[i])).collect();
    if budgets.loss.is_none() {
        let order = |&i: &usize, &j: &usize| {
            let (a, b) = (&points[i], &points[j]);
            let loss = a.loss.total_cmp(&b.loss).then(a.noise.total_cmp(&b.noise));
            loss.then(b.speed.total_cmp(&a.speed)).then(a.bytes.cmp(&b.bytes)).then(i.cmp(&j))
        };
        return inside.into_iter().min_by(order);
    }
    let fastest = inside.iter().map(|&i| points[i].speed).fold(0.0, f64::max);
    let least = if measured { AS_FAST * fastest } else { fastest * (1.0 - 1e-9) };
    let order = |&i: &usize, &j: &usize| {
        let (a, b) = (&points[i], &points[j]);
        let loss = a.loss.total_cmp(&b.loss).then(a.noise.total_cmp(&b.noise));
        a.bytes.cmp(&b.bytes).then(loss).then(b.speed.total_cmp(&a.speed)).then(i.cmp(&j))
    };
    inside.into_iter().filter(|&i| points[i].speed >= least).min_by(order)
}

/// The point that is nearest to being within all budgets, and for each budget what it would have to be for a point to fit if
/// the others stay.
pub(super) fn closest(points: &[Figures], budgets: &Budgets) -> Option<Closest> {
    let over = |f: &Figures| ALL.iter().filter_map(|a| a.used(budgets, f)).fold(0.0, f64::max);
    // What differs by less than is printed is as near, and the better of two such is the closer one.
    let near = |f: &Figures| (1000.0 * over(f)).round();
    let order = |&i: &usize, &j: &usize| {
        let (a, b) = (&points[i], &points[j]);
        let loss = a.loss.total_cmp(&b.loss).then(a.noise.total_cmp(&b.noise));
        let better = loss.then(b.speed.total_cmp(&a.speed)).then(a.bytes.cmp(&b.bytes));
        near(a).total_cmp(&near(b)).then(better).then(i.cmp(&j))
    };
    let point = (0..points.len()).min_by(order)?;
    let loosened = |aim: &Aim| {
        aim.used(budgets, &points[point])?;
        let others = |f: &&Figures| ALL.iter().filter(|a| *a != aim).all(|a| a.holds(budgets, f));
        let used = |f: &&Figures| aim.used(budgets, f).unwrap_or(0.0);
        let found = points.iter().filter(others).min_by(|a, b| used(a).total_cmp(&used(b)))?;
        Some(aim.flag_for(found))
    };
    Some(Closest { point, loosened: ALL.iter().filter_map(loosened).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(loss: f64, speed: f64, bytes: u64) -> Figures {
        Figures { loss, noise: loss * loss, speed, estimate: speed, bytes, ..Figures::default() }
    }

    #[test]
    fn what_others_beat_is_not_on_the_front() {
        let points = [
            point(0.0, 1.0, 100),
            point(0.01, 2.0, 30),
            point(0.02, 1.9, 30),
            point(0.01, 2.0, 30),
            point(0.02, 1.5, 20),
            point(0.0, 1.0, 101),
        ];
        assert_eq!(front(&points, |f| f.speed), [true, true, false, false, true, false]);
        assert!(front(&[], |f| f.speed).is_empty());
    }

    #[test]
    fn the_best_within_the_budgets() {
        let points = [point(0.0, 1.0, 100), point(0.004, 1.99, 40), point(0.005, 2.0, 30), point(0.02, 3.0, 20)];
        let budgets = |loss, speed, bytes| Budgets { loss, speed, bytes };
        let best = |b: &Budgets, measured| super::best(&points, b, measured);
        assert_eq!(best(&budgets(Some(0.01), None, None), false), Some(2));
        // As fast, by the clock, and the smaller one is taken.
        assert_eq!(best(&budgets(Some(0.01), None, None), true), Some(2));
        assert_eq!(best(&budgets(Some(0.0045), None, None), true), Some(1));
        // Without a loss that is allowed, the least.
        assert_eq!(best(&budgets(None, Some(1.5), None), true), Some(1));
        assert_eq!(best(&budgets(None, Some(1.5), Some(30)), true), Some(2));
        assert_eq!(best(&budgets(None, None, Some(25)), true), Some(3));
        assert_eq!(best(&budgets(Some(0.001), Some(2.0), None), true), None);
    }

    #[test]
    fn of_points_as_near_the_better_one() {
        let points = [point(0.3, 1.0, 31_310), point(0.001, 1.0, 31_311), point(0.001, 1.2, 31_311)];
        let budgets = Budgets { loss: None, speed: None, bytes: Some(31_300) };
        assert_eq!(closest(&points, &budgets).unwrap().point, 2);
    }

    #[test]
    fn the_closest_and_what_to_loosen() {
        let points = [point(0.0, 1.0, 100), point(0.0041, 1.5, 40), point(0.02, 3.0, 20)];
        let budgets = Budgets { loss: Some(0.003), speed: Some(1.4), bytes: Some(50) };
        let c = closest(&points, &budgets).unwrap();
        assert_eq!((c.point, c.loosened), (1, vec!["--max-loss 0.41%".to_owned()]));
        // Two budgets are missed by the best: each alone can be loosened only where a point fits the other.
        let budgets = Budgets { loss: Some(0.003), speed: Some(2.0), bytes: None };
        let c = closest(&points, &budgets).unwrap();
        assert_eq!(c.loosened, ["--max-loss 2%", "--min-speedup 1"]);
        let impossible = Budgets { loss: None, speed: Some(9.0), bytes: Some(10) };
        assert_eq!(closest(&points, &impossible).unwrap().loosened, [""; 0]);
    }
}
