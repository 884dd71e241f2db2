//! From the points that are known to the next ones: towards the budgets, into the widest gap of a ladder, and by chance.

use std::collections::BTreeSet;

use super::{
    recipe::{EVERYTHING, Form, Ranges, Recipe},
    rung::Family,
    search::Search,
};
use crate::{
    config::{FloatWeights, Mode},
    pipeline::auto::FITTED,
    weights,
};

/// Allowed noises that are nearer to each other than this factor make the same plans.
const CLOSE: f64 = 1.12;
/// Points that single nodes are changed of, the best first, and the nodes of each.
const BEST: usize = 3;
const NODES: usize = 16;

/// Numbers that look random and are the same for each seed (SplitMix64: G. Steele and others, "Fast Splittable Pseudorandom
/// Number Generators", 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A whole number below `n`, which is above 0.
    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }
}

/// The allowed noise between two rungs of which one is within a budget and the other is not.
pub(super) fn towards_budgets(search: &Search<'_, '_>, f: usize) -> Option<f64> {
    let rungs = &search.families[f].rungs;
    let figures = |i: usize| search.figures(rungs[i].1);
    let b = search.budgets;
    // Less noise is nearer to the original in every respect; speed is by the cost model, so that the clock has no say.
    let inside: [Box<dyn Fn(usize) -> bool>; 2] = [
        Box::new(|i| b.loss.is_some_and(|most| figures(i).loss <= most)),
        Box::new(|i| b.speed.is_some_and(|least| figures(i).estimate < least)),
    ];
    inside.iter().find_map(|low| {
        let first = (0..rungs.len()).filter(|&i| low(i)).max();
        let next = first.map_or(0, |i| i + 1);
        if next >= rungs.len() || (first.is_none() && b.loss.is_none()) {
            return None;
        }
        let high = rungs[next].0;
        let allowed = match first {
            Some(i) if high <= CLOSE * rungs[i].0 => return None,
            Some(i) => (rungs[i].0 * high).sqrt(),
            None => high / 4.0,
        };
        // Where nothing is left in integers, less noise is nothing else.
        (first.is_some() || figures(next).integer > 0).then_some(allowed)
    })
}

/// The two neighbours of a ladder that differ most, and what is allowed between them.
pub(super) fn widest_gap(search: &Search<'_, '_>) -> Option<(usize, f64)> {
    let mut widest: Option<(f64, usize, f64)> = None;
    for (f, Family { rungs, .. }) in search.families.iter().enumerate() {
        for pair in rungs.windows(2) {
            let [(low, a), (high, b)] = pair else { continue };
            let (a, b) = (search.figures(*a), search.figures(*b));
            let faster = (b.estimate / a.estimate.max(1e-9)).ln().abs();
            let smaller = ((b.bytes as f64) / (a.bytes as f64).max(1.0)).ln().abs();
            let worse = (b.noise.max(1e-12) / a.noise.max(1e-12)).ln().abs();
            let gap = (faster + 0.3 * smaller) * worse.sqrt();
            let open = *high > CLOSE * *low && gap > 1e-3;
            if open && widest.as_ref().is_none_or(|w| gap > w.0) {
                widest = Some((gap, f, (low * high).sqrt()));
            }
        }
    }
    widest.map(|(_, f, allowed)| (f, allowed))
}

/// The best point so far with one node changed: one more in integers where a loss is allowed and left, the quietest first; else one
/// more in float, the loudest first. What was tried already is passed over.
pub(super) fn one_node_on(search: &Search<'_, '_>) -> Option<Recipe> {
    let b = search.budgets;
    let inside = |&i: &usize| {
        let f = search.figures(i);
        b.loss.is_none_or(|most| f.loss <= most)
            && b.speed.is_none_or(|least| f.estimate >= least)
            && b.bytes.is_none_or(|most| f.bytes <= most)
    };
    let usable = |i: &usize| !search.state.points[*i].recipe.float.contains(EVERYTHING);
    let mut points: Vec<usize> = search.seen.iter().copied().filter(|i| inside(i) && usable(i)).collect();
    points.sort_by(|&i, &j| {
        let (a, c) = (search.figures(i), search.figures(j));
        let faster = c.estimate.total_cmp(&a.estimate);
        let nearer = a.loss.total_cmp(&c.loss).then(a.noise.total_cmp(&c.noise));
        if b.loss.is_some() { faster.then(nearer) } else { nearer.then(faster) }.then(i.cmp(&j))
    });
    let model = search.lab.prepared;
    points.into_iter().take(BEST).find_map(|point| {
        let recipe = &search.state.points[point].recipe;
        let family = search.families.iter().find(|f| f.form.ranges == recipe.form.ranges)?;
        let integer = family.placed.nodes.iter().filter(|(_, d)| d.is_integer()).map(|(n, _)| *n);
        let back = b.loss.is_some();
        let mut nodes: Vec<(f64, String)> = integer
            .map(|n| (family.noise_around(model, n), model.node_label(n)))
            .filter(|(_, label)| recipe.float.contains(label) == back)
            .collect();
        nodes.sort_by(|x, y| x.0.total_cmp(&y.0).then_with(|| x.1.cmp(&y.1)));
        if !back {
            nodes.reverse();
        }
        let changed = |(_, label): (f64, String)| {
            let mut recipe = recipe.clone();
            toggle(&mut recipe.float, &label);
            recipe.stored_of.remove(&label);
            recipe
        };
        nodes.into_iter().take(NODES).map(changed).find(|recipe| !search.tried.contains(recipe))
    })
}

/// A point of the front with something changed by chance.
pub(super) fn perturbed(search: &mut Search<'_, '_>) -> Option<Recipe> {
    let front = search.front();
    let user = Form::of(&search.lab.job.settings.config);
    let auto = search.lab.job.settings.config.mode == Mode::Auto;
    let stored = search.forms_of_stored();
    // Points within reach of the budgets have more to gain.
    let near: Vec<usize> = front.iter().copied().filter(|&i| is_near(search, i)).collect();
    let some = if near.is_empty() || search.random.below(4) == 0 { &front } else { &near };
    let point = *some.get(search.random.below(some.len()))?;
    let mut recipe = search.state.points[point].recipe.clone();
    if recipe.float.contains(EVERYTHING) {
        return None;
    }
    let labels = labels(search, &recipe.form)?;
    match search.random.below(12) {
        0..=4 => {
            let count = 1 + search.random.below(3);
            for _ in 0..count {
                let label = &labels[search.random.below(labels.len())];
                toggle(&mut recipe.float, label);
            }
        }
        5..=7 => {
            let longest = (labels.len() / 6).max(2);
            let (from, count) = (search.random.below(labels.len()), 2 + search.random.below(longest));
            let region = &labels[from..(from + count).min(labels.len())];
            let back = search.random.below(2) == 0;
            for label in region {
                if back {
                    recipe.float.remove(label);
                } else {
                    recipe.float.insert(label.clone());
                }
            }
        }
        8 if user.algorithm == weights::DEFAULT => {
            let others = [weights::DEFAULT, FITTED, "mse"];
            others[search.random.below(others.len())].clone_into(&mut recipe.form.algorithm);
        }
        9 if recipe.form.ranges != Ranges::Dynamic => {
            let others = [user.observer.as_str(), "mse", "min_max", "percentile", "entropy"];
            others[search.random.below(others.len())].clone_into(&mut recipe.form.observer);
        }
        10 => {
            recipe.stored = stored[search.random.below(stored.len())];
            let free = recipe.stored == FloatWeights::Int8 && search.random.below(2) == 0;
            if !free {
                recipe.stored_of.clear();
            }
        }
        11 if auto && !user.evened() && recipe.form.ranges == Ranges::Static => {
            recipe.form.smooth = !recipe.form.smooth;
        }
        _ => return None,
    }
    // What computes in integers has no weights to store.
    let Recipe { float, stored_of, .. } = &mut recipe;
    stored_of.retain(|label, _| float.contains(label) || !labels.contains(label));
    Some(recipe)
}

fn toggle(float: &mut BTreeSet<String>, label: &str) {
    if !float.remove(label) {
        float.insert(label.to_owned());
    }
}

/// Whether a point is not far outside of the budgets.
pub(super) fn is_near(search: &Search<'_, '_>, point: usize) -> bool {
    let (b, f) = (search.budgets, search.figures(point));
    b.loss.is_none_or(|most| f.loss <= 2.0 * most)
        && b.speed.is_none_or(|least| f.estimate >= 0.7 * least)
        && b.bytes.is_none_or(|most| f.bytes as f64 <= 1.5 * most as f64)
}

/// The nodes that a form can have in integers.
fn labels(search: &Search<'_, '_>, form: &Form) -> Option<Vec<String>> {
    let same = search.families.iter().find(|f| f.form.ranges == form.ranges);
    let labels = same.or(search.families.first())?.labels.clone();
    (!labels.is_empty()).then_some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_numbers_for_each_seed() {
        let draw = |seed| {
            let mut random = Random(seed);
            (0..50).map(|_| random.below(10)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!((0..10).all(|n| draw(7).contains(&n)));
        assert_eq!(Random(1).below(0), 0);
    }
}
