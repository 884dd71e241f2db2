//! What `qonvert tune` found: for tools as JSON, for people as a table.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{
    Report,
    terminal::{bytes, count, decibel, percent},
};

/// What is known of a point.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// What is lost, as a share: of right answers where the data have labels enough, else by the distance of the answers.
    pub loss: f64,
    /// Noise of the answers as a share of what a loss of a percent allows.
    pub noise: f64,
    /// SQNR of the answers, dB, of the output with the least; `None` without noise.
    pub sqnr: Option<f64>,
    /// Right answers by the labels, of the original and of the point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<[u64; 2]>,
    /// Bytes of the file, weights in other files counted.
    pub bytes: u64,
    /// How many times as fast as the original: measured, or by the cost model.
    pub speed: f64,
    /// The ends of the interval that the measured speed is in, with 95 % certainty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certain: Option<[f64; 2]>,
    /// How many times as fast by the cost model.
    pub estimate: f64,
    /// Nodes in integers.
    pub integer: usize,
}

impl Figures {
    /// Whether a model can have them: a file may say anything.
    pub fn are_possible(&self) -> bool {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        self.loss >= 0.0
            && self.noise >= 0.0
            && self.loss.is_finite()
            && self.noise.is_finite()
            && positive(self.speed)
            && positive(self.estimate)
            && self.bytes > 0
            && self.certain.is_none_or(|[low, high]| positive(low) && low <= high)
    }
}

/// A model that was made and measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// How it was made.
    pub made: String,
    /// What was found.
    #[serde(flatten)]
    pub figures: Figures,
    /// Whether no other is as good in everything and better in something.
    pub front: bool,
    /// Whether it is within all budgets.
    pub fits: bool,
}

/// What a model shall keep to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Budgets {
    /// The most loss, as a share.
    pub loss: Option<f64>,
    /// The least speed, times that of the original.
    pub speed: Option<f64>,
    /// The most bytes.
    pub bytes: Option<u64>,
}

/// What is nearest where nothing is within all budgets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Closest {
    /// The point that misses its worst budget by the least factor.
    pub point: usize,
    /// Each alone would do, as a flag: what one budget would have to be with the others as they are.
    pub loosened: Vec<String>,
}

/// All that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Tuned {
    /// Where speeds come from, in words.
    pub speed_by: String,
    /// What loss is, in words.
    pub loss_by: String,
    /// Samples that points were judged on.
    pub samples: usize,
    /// How many of these calibration has not seen.
    pub unseen: usize,
    /// Bytes of the original.
    pub original_bytes: u64,
    /// What was asked for.
    pub budgets: Budgets,
    /// All points in the order in which they were tried.
    pub points: Vec<Point>,
    /// Points that were known from an earlier run.
    pub known: usize,
    /// The one that was written.
    pub best: Option<usize>,
    /// Where nothing is within the budgets.
    pub closest: Option<Closest>,
    /// Why the search ended, in words.
    pub ended: String,
    /// Seconds of the search.
    pub seconds: f64,
    /// What was noticed, beside what the report of the written model says.
    pub diagnostics: Vec<crate::diagnostics::Diagnostic>,
    /// The configuration that makes the best model again.
    #[serde(skip)]
    pub yaml: Option<String>,
    /// The report of the model that was written.
    pub report: Option<Report>,
}

/// The points as a table: the most faithful first.
pub fn table(tuned: &Tuned) -> String {
    let mut out = String::new();
    // Writing into a string cannot fail.
    let new = match tuned.unseen {
        0 => "which calibration has seen, too".to_owned(),
        n if n == tuned.samples => "which calibration has not seen".to_owned(),
        n => format!("{n} of which calibration has not seen"),
    };
    let _ = writeln!(out, "loss      {}, on {}, {new}", tuned.loss_by, count(tuned.samples, "sample"));
    let _ = writeln!(out, "speed     {}", tuned.speed_by);
    let _ = writeln!(out, "size      of the original: {}", bytes(tuned.original_bytes));
    let _ = writeln!(out, "\n   {:>5} {:>9}  {:>8}  {:>9}  {:>7}  made by", "point", "loss", "SQNR", "size", "speed");
    let mut order: Vec<usize> = (0..tuned.points.len()).collect();
    let key = |i: &usize| (tuned.points[*i].figures.loss, tuned.points[*i].figures.noise);
    order.sort_by(|a, b| {
        let ((l, n), (m, o)) = (key(a), key(b));
        l.total_cmp(&m).then(n.total_cmp(&o)).then(a.cmp(b))
    });
    for i in order {
        let p = &tuned.points[i];
        let best = if tuned.best == Some(i) { '>' } else { ' ' };
        let front = if p.front { '*' } else { ' ' };
        let f = &p.figures;
        let _ = writeln!(
            out,
            " {best}{front}{i:>5} {:>9}  {:>8}  {:>9}  {:>6.2}x  {}",
            percent(f.loss),
            decibel(f.sqnr),
            bytes(f.bytes),
            f.speed,
            p.made
        );
    }
    let front = tuned.points.iter().filter(|p| p.front).count();
    let known = if tuned.known > 0 { format!(", {} known from before", tuned.known) } else { String::new() };
    let tried = count(tuned.points.len(), "point");
    let _ = writeln!(
        out,
        "\n{tried}{known}; * the front: {front} that no other beats; > the best within the budgets\n{} after {:.1} s",
        tuned.ended, tuned.seconds
    );
    tuned.diagnostics.iter().for_each(|d| {
        let _ = writeln!(out, "{d}");
    });
    out
}

/// What to say where nothing is within the budgets.
pub fn missed(tuned: &Tuned) -> String {
    let Budgets { loss, speed, bytes: most } = tuned.budgets;
    let near = tuned.closest.as_ref().map(|c| &tuned.points[c.point].figures);
    // Two sizes that read alike and are not are told to the byte.
    let alike = most.zip(near).is_some_and(|(m, f)| f.bytes != m && bytes(m) == bytes(f.bytes));
    let bytes = |n: u64| if alike { format!("{n} bytes") } else { bytes(n) };
    let asked: Vec<String> = [
        loss.map(|l| format!("a loss of at most {}", percent(l))),
        speed.map(|s| format!("at least {s} times the speed")),
        most.map(|b| format!("at most {}", bytes(b))),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut text = format!("no model of {} has {}; nothing is written", tuned.points.len(), asked.join(", "));
    if let Some(Closest { point, loosened }) = &tuned.closest {
        let p = &tuned.points[*point];
        let f = &p.figures;
        let _ = write!(
            text,
            "\nthe closest is point {point} ({}): a loss of {}, {:.2} times the speed, {}",
            p.made,
            percent(f.loss),
            f.speed,
            bytes(f.bytes)
        );
        let _ = match &loosened[..] {
            [] => write!(text, "\nmore than one of the budgets would have to be loosened"),
            flags => write!(text, "\nwith the other budgets as they are, this would do: {}", flags.join(", or ")),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuned() -> Tuned {
        let point = |loss: f64, speed, bytes, front| Point {
            made: "static, rtn".into(),
            figures: Figures { loss, sqnr: (loss > 0.0).then_some(31.0), speed, bytes, ..Figures::default() },
            front,
            fits: true,
        };
        Tuned {
            speed_by: "by the cost model".into(),
            loss_by: "of right answers".into(),
            samples: 24,
            unseen: 20,
            original_bytes: 1000,
            budgets: Budgets { loss: Some(0.01), speed: Some(2.0), bytes: Some(300) },
            points: vec![point(0.02, 2.0, 300, true), point(0.0, 1.0, 1000, true)],
            known: 1,
            best: Some(0),
            closest: None,
            ended: "all points were tried".into(),
            seconds: 1.25,
            diagnostics: Vec::new(),
            yaml: None,
            report: None,
        }
    }

    #[test]
    fn the_most_faithful_first_and_the_best_marked() {
        let text = table(&tuned());
        let lines: Vec<&str> = text.lines().skip(5).take(2).collect();
        assert_eq!(lines[0], "  *    1    0.00 %     exact     1.0 kB    1.00x  static, rtn");
        assert_eq!(lines[1], " >*    0    2.00 %   31.0 dB  300 bytes    2.00x  static, rtn");
        assert!(text.contains("2 points, 1 known from before"), "{text}");
    }

    #[test]
    fn figures_that_no_model_has() {
        let good = Figures { loss: 0.01, noise: 1.0, speed: 2.0, estimate: 2.0, bytes: 9, ..Figures::default() };
        assert!(good.are_possible());
        for bad in [
            Figures { loss: -5.0, ..good.clone() },
            Figures { noise: f64::NAN, ..good.clone() },
            Figures { speed: 0.0, ..good.clone() },
            Figures { bytes: 0, ..good.clone() },
            Figures { certain: Some([3.0, 2.0]), ..good.clone() },
        ] {
            assert!(!bad.are_possible(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_that_read_alike_are_told_to_the_byte() {
        let mut t = tuned();
        t.budgets.bytes = Some(31_310);
        t.points[0].figures.bytes = 31_320;
        t.closest = Some(Closest { point: 0, loosened: vec![] });
        let text = missed(&t);
        assert!(text.contains("at most 31310 bytes") && text.contains("speed, 31320 bytes"), "{text}");
    }

    #[test]
    fn what_is_closest_in_words() {
        let mut t = tuned();
        t.closest = Some(Closest { point: 0, loosened: vec!["--max-loss 2%".into()] });
        let text = missed(&t);
        for part in [
            "no model of 2 has a loss of at most 1.00 %, at least 2 times the speed, at most 300 bytes",
            "point 0 (static, rtn): a loss of 2.00 %, 2.00 times the speed, 300 bytes",
            "this would do: --max-loss 2%",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        t.closest = Some(Closest { point: 0, loosened: vec![] });
        assert!(missed(&t).contains("more than one"));
    }
}
