//! How bits are spread over layers: a choice for each, so that all of them together do least harm within a budget of bytes.
//!
//! A multiple-choice knapsack. Of each layer's choices those on the lower convex hull of harm over bytes are taken in the order
//! of what a byte gains, which is the best that there is for the budgets at which it stops (Sinha and Zoltners, "The
//! Multiple-Choice Knapsack Problem", 1979); what is left of the budget goes to single exchanges, and to pairs of them.

/// One way to store a layer's weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// What it takes.
    pub bytes: u64,
    /// What it does to the answers; adds up over layers.
    pub harm: f64,
}

/// More layers than this exchange no pairs, which take the square of their number.
const MOST_PAIRED: usize = 400;
/// Exchanges, at most.
const MOST_EXCHANGES: usize = 1000;

/// Which choice each layer gets. `None` where even the smallest choices together exceed the budget, or a layer has none.
pub fn spread(layers: &[Vec<Cost>], budget: u64) -> Option<Vec<usize>> {
    let hulls: Vec<Vec<usize>> = layers.iter().map(|choices| hull(choices)).collect();
    let mut chosen: Vec<usize> = hulls.iter().map(|h| h.first().copied()).collect::<Option<_>>()?;
    let used = |chosen: &[usize]| layers.iter().zip(chosen).map(|(l, &c)| l[c].bytes).sum::<u64>();
    let mut left = budget.checked_sub(used(&chosen))?;
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (layer, hull) in hulls.iter().enumerate() {
        for (k, pair) in hull.windows(2).enumerate() {
            let [from, to] = [pair[0], pair[1]].map(|c| layers[layer][c]);
            steps.push(((from.harm - to.harm) / (to.bytes - from.bytes).max(1) as f64, layer, k));
        }
    }
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    for (_, layer, k) in steps {
        let (from, to) = (hulls[layer][k], hulls[layer][k + 1]);
        let more = layers[layer][to].bytes - layers[layer][from].bytes;
        // A layer whose step did not fit stays where it is.
        if chosen[layer] == from && more <= left {
            chosen[layer] = to;
            left -= more;
        }
    }
    for _ in 0..MOST_EXCHANGES {
        let Some((exchange, now_left)) = exchange(layers, &chosen, left) else { break };
        exchange.into_iter().for_each(|(layer, choice)| chosen[layer] = choice);
        left = now_left;
    }
    Some(chosen)
}

/// The choices on the lower convex hull, the smallest first.
fn hull(choices: &[Cost]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..choices.len()).filter(|&c| choices[c].harm.is_finite()).collect();
    order.sort_by(|&a, &b| {
        choices[a].bytes.cmp(&choices[b].bytes).then(choices[a].harm.total_cmp(&choices[b].harm)).then(a.cmp(&b))
    });
    let mut hull: Vec<usize> = Vec::new();
    for c in order {
        let new = choices[c];
        if hull.last().is_some_and(|&last| choices[last].harm <= new.harm) {
            continue;
        }
        while let [.., a, b] = hull[..] {
            let (a, b) = (choices[a], choices[b]);
            let gains = |from: Cost, to: Cost| (from.harm - to.harm) / (to.bytes - from.bytes).max(1) as f64;
            if gains(a, b) > gains(b, new) {
                break;
            }
            hull.pop();
        }
        hull.push(c);
    }
    hull
}

/// The exchange that gains most within what is left: of one layer's choice, or of two.
#[allow(clippy::type_complexity)]
fn exchange(layers: &[Vec<Cost>], chosen: &[usize], left: u64) -> Option<(Vec<(usize, usize)>, u64)> {
    let mut best: (f64, Option<(Vec<(usize, usize)>, u64)>) = (0.0, None);
    let moves: Vec<(usize, usize, i128, f64)> = layers
        .iter()
        .enumerate()
        .flat_map(|(l, choices)| {
            let now = choices[chosen[l]];
            let other =
                move |(c, to): (usize, &Cost)| (l, c, i128::from(to.bytes) - i128::from(now.bytes), now.harm - to.harm);
            choices.iter().enumerate().map(other)
        })
        .filter(|&(l, c, ..)| c != chosen[l] && layers[l][c].harm.is_finite())
        .collect();
    // Less than this is rounding.
    let least = 1e-12 * layers.iter().zip(chosen).map(|(l, &c)| l[c].harm).sum::<f64>();
    let room = i128::from(left);
    for &(l, c, more, gain) in &moves {
        if more <= room && gain > best.0 + least {
            best = (gain, Some((vec![(l, c)], (room - more) as u64)));
        }
    }
    if best.1.is_some() || layers.len() > MOST_PAIRED {
        return best.1;
    }
    let (saves, gains): (Vec<_>, Vec<_>) = moves.into_iter().partition(|m| m.2 < 0);
    for &(l, c, more, gain) in gains.iter().filter(|m| m.3 > 0.0) {
        for &(other, d, saved, lost) in saves.iter().filter(|s| s.0 != l) {
            let gain = gain + lost;
            if more + saved <= room && gain > best.0 + least {
                best = (gain, Some((vec![(l, c), (other, d)], (room - more - saved) as u64)));
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn total(layers: &[Vec<Cost>], chosen: &[usize]) -> (u64, f64) {
        let costs = layers.iter().zip(chosen).map(|(l, &c)| l[c]);
        costs.fold((0, 0.0), |(bytes, harm), c| (bytes + c.bytes, harm + c.harm))
    }

    /// The least harm, by trying all.
    fn least(layers: &[Vec<Cost>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = layers.split_first() else { return Some(0.0) };
        let with = |c: &Cost| Some(c.harm + least(rest, budget.checked_sub(c.bytes)?)?);
        first.iter().filter_map(with).min_by(f64::total_cmp)
    }

    #[test]
    fn the_layer_that_suffers_gets_the_bits() {
        let layer = |sensitive: f64| {
            [(10, 1.0), (20, 0.1), (40, 0.001)].map(|(bytes, harm)| Cost { bytes, harm: harm * sensitive }).to_vec()
        };
        let layers = [layer(1.0), layer(100.0), layer(0.01)];
        assert_eq!(spread(&layers, 70), Some(vec![1, 2, 0]));
        assert_eq!(spread(&layers, 29), None);
        assert_eq!(spread(&layers, 1000), Some(vec![2, 2, 2]));
        assert_eq!(spread(&[Vec::new()], 1000), None);
        assert_eq!(spread(&[], 0), Some(Vec::new()));
        // More bytes that gain nothing are not spent.
        let odd =
            vec![Cost { bytes: 10, harm: 0.5 }, Cost { bytes: 20, harm: 0.5 }, Cost { bytes: 15, harm: f64::INFINITY }];
        assert_eq!(spread(&[odd], 100), Some(vec![0]));
    }

    proptest! {
        #[test]
        fn near_the_best_and_within_the_budget(
            layers in prop::collection::vec(prop::collection::vec((1u64..100, 0.0f64..1.0), 1..5), 1..6),
            budget in 1u64..400,
        ) {
            let layers: Vec<Vec<Cost>> =
                layers.iter().map(|l| l.iter().map(|&(bytes, harm)| Cost { bytes, harm }).collect()).collect();
            match (spread(&layers, budget), least(&layers, budget)) {
                (Some(chosen), Some(least)) => {
                    let (bytes, harm) = total(&layers, &chosen);
                    prop_assert!(bytes <= budget);
                    prop_assert!(harm <= least * 1.25 + 0.15, "{harm} instead of {least}");
                }
                (None, None) => {}
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
