//! Things that are timed in turns.

use std::time::{Duration, Instant};

use super::stats;
use crate::error::Result;

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most rounds. In a round each has one turn.
    pub rounds: usize,
    /// A turn is as many runs as take about this long, at least one.
    pub turn: Duration,
    /// No round begins after this time, but there are [`LEAST_ROUNDS`].
    pub budget: Duration,
}

/// A median of fewer says nothing.
const LEAST_ROUNDS: usize = 3;

/// Runs before anything is timed: the first ones allocate.
const WARM_UP: usize = 2;

/// Seconds of one run, by thing and round: what a tenth of the turn's runs stay under, since a run in which another process
/// had the core says nothing, and on a busy machine that may be most of them. `enough` looks at what there is after each round and may end it.
pub fn in_turns(
    runs: &mut [&mut dyn FnMut() -> Result<()>],
    limits: Limits,
    enough: &dyn Fn(&[Vec<f64>]) -> bool,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Vec<f64>>> {
    let began = Instant::now();
    let mut repeats = Vec::new();
    for run in runs.iter_mut() {
        for _ in 0..WARM_UP {
            run()?;
        }
        let one = Instant::now();
        run()?;
        let one = one.elapsed().as_secs_f64().max(1e-6);
        repeats.push(((limits.turn.as_secs_f64() / one) as u32).clamp(1, 100_000));
    }
    let mut seconds = vec![Vec::new(); runs.len()];
    for round in 0..limits.rounds.max(LEAST_ROUNDS) {
        if round >= LEAST_ROUNDS && began.elapsed() > limits.budget {
            break;
        }
        for ((run, &repeats), times) in runs.iter_mut().zip(&repeats).zip(&mut seconds) {
            let mut turn = Vec::new();
            for _ in 0..repeats {
                let one = Instant::now();
                run()?;
                turn.push(one.elapsed().as_secs_f64());
            }
            times.push(stats::undisturbed(&turn));
        }
        progress(round + 1, limits.rounds);
        if enough(&seconds) {
            break;
        }
    }
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::error::Error;

    #[test]
    fn each_has_its_turn_in_each_round() {
        let order = RefCell::new(String::new());
        let mut a = || {
            order.borrow_mut().push('a');
            Ok(())
        };
        let mut b = || {
            order.borrow_mut().push('b');
            Ok(())
        };
        let limits = Limits { rounds: 4, turn: Duration::ZERO, budget: Duration::from_secs(60) };
        let times = in_turns(&mut [&mut a, &mut b], limits, &|_| false, &|_, _| ()).unwrap();
        assert_eq!(times.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
        assert_eq!(*order.borrow(), "aaabbbabababab");
    }

    #[test]
    fn it_ends_when_it_is_enough_when_time_is_over_and_at_an_error() {
        let mut run = || Ok(());
        let limits = Limits { rounds: 50, turn: Duration::ZERO, budget: Duration::from_secs(60) };
        let enough = |seen: &[Vec<f64>]| seen[0].len() == 7;
        assert_eq!(in_turns(&mut [&mut run], limits, &enough, &|_, _| ()).unwrap()[0].len(), 7);
        let limits = Limits { budget: Duration::ZERO, ..limits };
        assert_eq!(in_turns(&mut [&mut run], limits, &|_| false, &|_, _| ()).unwrap()[0].len(), LEAST_ROUNDS);
        let mut fails = || Err(Error::runtime("no"));
        assert!(in_turns(&mut [&mut fails], limits, &|_| false, &|_, _| ()).is_err());
    }
}
