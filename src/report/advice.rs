//! What to know and what to try, in words: the most useful first, and no more than one reads.

use super::{
    Auto, FloatReason, Kept, Report, Verdict,
    terminal::{count, percent},
};

/// Sentences at most.
const MOST: usize = 5;
/// A sample that is answered so much worse than all together, and as badly as this, deserves a look, dB.
const ODD: (f64, f64) = (12.0, 20.0);
/// What a proof may be under the aim by chance, dB.
const CHANCE: f64 = 1.5;
/// Samples from which on one can be called odd.
const MANY: usize = 8;

/// Sentences for a finished report.
pub(super) fn advice(report: &Report) -> Vec<String> {
    let first = [uneven(report), too_much(report), proof_below(report), left_in_float(report), odd_sample(report)];
    let all = [cures(report), opset(report), time(report)];
    first.into_iter().chain(all).flatten().take(MOST).collect()
}

/// A cure for what collapsed, where mode auto has not tried it already.
fn uneven(report: &Report) -> Option<String> {
    let concats = Some(report.uneven_concats).filter(|n| *n > 0 && report.auto.is_none())?;
    let joins = if concats == 1 { "joins" } else { "join" };
    (report.verdict == Verdict::Collapsed).then(|| {
        format!(
            "{} {joins} parts of very different ranges, as boxes and scores have them, into one scale: --split-concats keeps them \
             in float where the answers gain by it, and --mode auto looks for it by itself.",
            count(concats, "Concat")
        )
    })
}

/// What allows a plan that keeps this much, as the flag that decides takes it.
fn allows(auto: &Auto, kept: &Kept, enough: Option<f64>) -> Option<String> {
    // Downwards, that the measured plan fits.
    let below = |x: f64, digits: i32| (x * 10f64.powi(digits) - 1e-6).floor() / 10f64.powi(digits);
    match auto.limit {
        "min_sqnr" => kept.sqnr.map(|sqnr| below(sqnr, 0)).filter(|s| *s > 0.0).map(|s| format!("--min-sqnr {s}")),
        "min_agreement" => kept.agreement.map(|share| format!("--min-agreement {}", below(share, 3))),
        "max_drop" => Some("a larger --max-drop".to_owned()),
        _ => enough.map(|loss| format!("--max-loss {}%", (loss * 1e8).round() / 1e6)),
    }
}

/// Whether the answers are classes that labels could judge, and there are no labels.
fn could_have_labels(report: &Report) -> bool {
    report.proof.as_ref().is_some_and(|p| p.accuracy.is_none() && p.outputs.iter().any(|o| o.agreement.is_some()))
}

fn too_much(report: &Report) -> Option<String> {
    let auto = report.auto.as_ref().filter(|a| a.too_much())?;
    let kept = match (auto.kept_after.agreement.zip(auto.least_agreement), auto.after) {
        (Some((share, least)), _) if auto.limit == "min_agreement" => {
            format!(": {} of the answers stay the same, {} are asked for", percent(share), percent(least))
        }
        (_, Some(after)) if auto.kept_after.right.is_none() => format!(": {after:.1} dB of {:.0}", auto.aim),
        _ => String::new(),
    };
    let try_this = match (auto.out_of_time, allows(auto, &auto.kept_after, auto.enough_after)) {
        (true, _) => "give it a longer --time-budget".to_owned(),
        (_, _) if auto.limit == "max_loss" && could_have_labels(report) => {
            "give right answers in an array `labels` beside the inputs, for these to decide".to_owned()
        }
        (_, Some(flag)) => format!("{flag} allows what is written"),
        _ => "look at the calibration data: they may not be what the model was trained on".to_owned(),
    };
    Some(format!("No plan was found that keeps to {}{kept}; {try_this}.", auto.limit))
}

fn proof_below(report: &Report) -> Option<String> {
    let auto = report.auto.as_ref().filter(|a| !a.too_much())?;
    let proof = report.proof.as_ref().filter(|p| p.accuracy.is_none())?;
    let below = |(o, aim): &(&super::OutputScore, &f64)| o.graded && o.least().is_some_and(|s| s < *aim - CHANCE);
    let (output, aim) = proof.outputs.iter().zip(&auto.aims).find(below)?;
    let judged = count(auto.samples, "sample");
    Some(format!(
        "On the proof's {} output {:?} keeps {:.1} dB, less than the {aim:.0} dB that it kept on the {judged} that plans were \
         judged on: give more calibration data, of all kinds that the model will see.",
        count(proof.samples, "sample"),
        output.name,
        output.least()?
    ))
}

fn left_in_float(report: &Report) -> Option<String> {
    let auto = report.auto.as_ref().filter(|a| a.floated > 0)?;
    let halves = report.halves.as_ref().filter(|_| report.nodes.integer == 0);
    let mut left: Vec<&FloatReason> = report.nodes.reasons.iter().filter(|r| r.for_answers).collect();
    left.sort_by_key(|r| std::cmp::Reverse(r.nodes.len()));
    let kinds: Vec<String> = left.iter().take(3).map(|r| format!("{} × {}", r.nodes.len(), r.op)).collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    let mut try_this = Vec::new();
    if auto.limit == "max_loss" && could_have_labels(report) {
        try_this.push("an array `labels` beside the inputs lets right answers decide instead of noise".to_owned());
    }
    try_this.extend(allows(auto, &auto.kept_before, auto.enough).map(|flag| match halves {
        Some(h) => format!("{flag} brings them into {}", h.dtype),
        None => format!("{flag} makes them integer"),
    }));
    if halves.is_none() {
        try_this.push("training with quantization (QAT) may keep both".to_owned());
    }
    let try_this = if try_this.is_empty() { String::new() } else { format!("; {}", try_this.join(", ")) };
    Some(format!(
        "{}{kinds} {} left in {}, since rounding them costs more of the answers than {} allows{try_this}.",
        count(auto.floated, "node"),
        if auto.floated == 1 { "is" } else { "are" },
        if halves.is_some() { "32 bits" } else { "float" },
        auto.limit,
    ))
}

fn odd_sample(report: &Report) -> Option<String> {
    let proof = report.proof.as_ref().filter(|p| p.samples >= MANY)?;
    let odd = |o: &&super::OutputScore| {
        o.graded && o.worst_sqnr.zip(o.sqnr).is_some_and(|(worst, all)| worst < all - ODD.0 && worst < ODD.1)
    };
    let output = proof.outputs.iter().find(odd)?;
    let (sample, worst) = (output.worst_sample?, output.worst_sqnr?);
    Some(format!(
        "Sample {sample} is answered much worse than all together ({worst:.1} dB at output {:?}): see whether it is a \
         typical input, and give more like it if so.",
        output.name
    ))
}

fn cures(report: &Report) -> Option<String> {
    let auto = report.auto.as_ref()?;
    let step = |c: &super::Cure| {
        let db = |v: Option<f64>| v.map_or("no noise".to_owned(), |v| format!("{v:.1} dB"));
        format!("{} took the answers from {} to {}", c.name, db(c.before), db(c.after))
    };
    let steps: Vec<String> = auto.cures.iter().map(step).collect();
    if steps.is_empty() {
        return None;
    }
    let text = steps.join("; ");
    let mut letters = text.chars();
    let first = letters.next()?.to_uppercase();
    Some(format!("{first}{}.", letters.as_str()))
}

fn opset(report: &Report) -> Option<String> {
    let old = |r: &&FloatReason| r.reason.contains("needs opset");
    let (nodes, reason) =
        report.nodes.reasons.iter().filter(old).fold((0, None), |(n, _), r| (n + r.nodes.len(), Some(r)));
    let reason = reason?;
    Some(format!(
        "{} would be integer in a newer file: export the model anew ({}).",
        count(nodes, "node"),
        reason.reason
    ))
}

fn time(report: &Report) -> Option<String> {
    let auto = report.auto.as_ref().filter(|a| a.out_of_time && !a.too_much())?;
    let found = if auto.floated > 0 { "a faster plan" } else { "a better one" };
    Some(format!("The time budget was over before the search was: a longer one may find {found}."))
}

#[cfg(test)]
mod tests {
    use super::{super::*, advice, left_in_float};

    fn report() -> Report {
        let reason = FloatReason {
            op: "Conv".into(),
            reason: "why".into(),
            nodes: vec!["a".into(), "b".into()],
            for_answers: true,
        };
        let output = OutputScore { name: "y".into(), sqnr: Some(33.0), graded: true, ..Default::default() };
        Report {
            auto: Some(Auto {
                aim: 30.0,
                max_loss: 0.01,
                limit: "max_loss",
                before: Some(24.0),
                used_before: 4.0,
                enough: Some(0.02),
                after: Some(33.0),
                used_after: 0.5,
                ..Default::default()
            }),
            nodes: Nodes { reasons: vec![reason], ..Default::default() },
            proof: Some(Proof { samples: 16, outputs: vec![output], ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn each_sentence_has_its_occasion() {
        let mut r = report();
        assert_eq!(advice(&r), [""; 0]);
        r.auto.as_mut().unwrap().floated = 2;
        assert_eq!(
            advice(&r),
            [
                "2 nodes (2 × Conv) are left in float, since rounding them costs more of the answers than max_loss allows; \
              --max-loss 2% makes them integer, training with quantization (QAT) may keep both."
            ]
        );
        r.proof.as_mut().unwrap().outputs[0].agreement = Some(1.0);
        assert!(advice(&r)[0].contains("an array `labels` beside the inputs"));
        let output = &mut r.proof.as_mut().unwrap().outputs[0];
        (output.worst_sqnr, output.worst_sample) = (Some(8.0), Some(5));
        assert!(
            advice(&r)[1].starts_with("Sample 5 is answered much worse than all together (8.0 dB at output \"y\")")
        );
        let auto = r.auto.as_mut().unwrap();
        auto.cures.push(Cure { name: "rounding".into(), before: Some(24.0), after: Some(26.5) });
        (auto.after, auto.used_after, auto.out_of_time) = (Some(27.0), 2.0, true);
        let all = advice(&r);
        assert_eq!(all[0], "No plan was found that keeps to max_loss: 27.0 dB of 30; give it a longer --time-budget.");
        assert_eq!(all[3], "Rounding took the answers from 24.0 dB to 26.5 dB.");
        r.auto.as_mut().unwrap().aims = vec![40.0];
        let auto = r.auto.as_mut().unwrap();
        (auto.after, auto.used_after, auto.samples) = (Some(33.0), 0.5, 24);
        assert!(advice(&r)[0].starts_with("On the proof's 16 samples output \"y\" keeps 33.0 dB, less than the 40 dB"));
        r.auto.as_mut().unwrap().aims.clear();
        r.nodes.reasons[0].reason = "its integer kernel needs opset 12, the model has 9".into();
        r.auto.as_mut().unwrap().after = Some(33.0);
        let auto = r.auto.as_mut().unwrap();
        for (limit, flag) in [("min_sqnr", "--min-sqnr 24"), ("min_agreement", "--min-agreement 0.975")] {
            auto.limit = limit;
            auto.kept_before = Kept { sqnr: Some(24.6), agreement: Some(0.9758), right: None };
            let said = left_in_float(&Report { auto: Some(auto.clone()), ..Report::default() }).unwrap();
            let costs = format!("costs more of the answers than {limit} allows; {flag} makes them integer");
            assert!(said.contains(&costs) && !said.contains("labels"), "{said}");
        }
        let all = advice(&r);
        assert!(all.len() <= 5 && all.iter().any(|s| s.contains("export the model anew")), "{all:?}");
        assert!(all.last().unwrap().contains("time budget was over"), "{all:?}");
    }
}
