//! What to know and what to try, in words: the most useful first, and no more than one reads.

use super::{FloatReason, Report, terminal::count};

/// Sentences at most.
const MOST: usize = 5;
/// A sample that is answered so much worse than all together, and as badly as this, deserves a look, dB.
const ODD: (f64, f64) = (12.0, 20.0);
/// A larger loss is no advice, percent.
const USEFUL: f64 = 10.0;
/// What a proof may be under the aim by chance, dB.
const CHANCE: f64 = 1.5;
/// Samples from which on one can be called odd.
const MANY: usize = 8;

/// Sentences for a finished report.
pub(super) fn advice(report: &Report) -> Vec<String> {
    let first = [too_much(report), proof_below(report), left_in_float(report), odd_sample(report)];
    let all = [cures(report), opset(report), time(report)];
    first.into_iter().chain(all).flatten().take(MOST).collect()
}

/// The loss that would allow what has this SQNR, as `--max-loss` takes it: rounded up to two digits.
fn max_loss(report: &Report, sqnr: Option<f64>) -> Option<String> {
    let auto = report.auto.as_ref()?;
    let percent = 100.0 * auto.max_loss * 10f64.powf((auto.aim - sqnr?) / 20.0);
    if percent > USEFUL {
        return None;
    }
    let unit = 10f64.powf((percent.log10() - 1.0).floor());
    Some(format!("--max-loss {}%", ((percent / unit).ceil() * unit * 1e6).round() / 1e6))
}

/// Whether the answers are classes that labels could judge, and there are no labels.
fn could_have_labels(report: &Report) -> bool {
    report.proof.as_ref().is_some_and(|p| p.accuracy.is_none() && p.outputs.iter().any(|o| o.agreement.is_some()))
}

fn too_much(report: &Report) -> Option<String> {
    let auto = report.auto.as_ref().filter(|a| a.too_much())?;
    let kept = auto.after.map_or(String::new(), |after| format!(": {after:.1} dB of {:.0}", auto.aim));
    let try_this = match (auto.out_of_time, max_loss(report, auto.after)) {
        (true, _) => "give it a longer --time-budget".to_owned(),
        (_, _) if could_have_labels(report) => {
            "give right answers in an array `labels` beside the inputs, for these to decide".to_owned()
        }
        (_, Some(loss)) => format!("{loss} allows what is written"),
        _ => "look at the calibration data: they may not be what the model was trained on".to_owned(),
    };
    Some(format!("No plan was found that keeps to max_loss{kept}; {try_this}."))
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
    let mut left: Vec<&FloatReason> = report.nodes.reasons.iter().filter(|r| r.for_answers).collect();
    left.sort_by_key(|r| std::cmp::Reverse(r.nodes.len()));
    let kinds: Vec<String> = left.iter().take(3).map(|r| format!("{} × {}", r.nodes.len(), r.op)).collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    let mut try_this = Vec::new();
    if could_have_labels(report) {
        try_this.push("an array `labels` beside the inputs lets right answers decide instead of noise".to_owned());
    }
    try_this.extend(max_loss(report, auto.before).map(|loss| format!("{loss} makes them integer")));
    try_this.push("training with quantization (QAT) may keep both".to_owned());
    Some(format!(
        "{}{kinds} {} left in float, since rounding them costs too much of the answers; {}.",
        count(auto.floated, "node"),
        if auto.floated == 1 { "is" } else { "are" },
        try_this.join(", ")
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
    use super::{super::*, advice};

    fn report() -> Report {
        let reason = FloatReason {
            op: "Conv".into(),
            reason: "why".into(),
            nodes: vec!["a".into(), "b".into()],
            for_answers: true,
        };
        let output = OutputScore { name: "y".into(), sqnr: Some(33.0), graded: true, ..Default::default() };
        Report {
            auto: Some(Auto { aim: 30.0, max_loss: 0.01, before: Some(24.0), after: Some(33.0), ..Default::default() }),
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
                "2 nodes (2 × Conv) are left in float, since rounding them costs too much of the answers; --max-loss 2% makes \
              them integer, training with quantization (QAT) may keep both."
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
        (auto.after, auto.out_of_time) = (Some(27.0), true);
        let all = advice(&r);
        assert_eq!(all[0], "No plan was found that keeps to max_loss: 27.0 dB of 30; give it a longer --time-budget.");
        assert_eq!(all[3], "Rounding took the answers from 24.0 dB to 26.5 dB.");
        r.auto.as_mut().unwrap().aims = vec![40.0];
        (r.auto.as_mut().unwrap().after, r.auto.as_mut().unwrap().samples) = (Some(33.0), 24);
        assert!(advice(&r)[0].starts_with("On the proof's 16 samples output \"y\" keeps 33.0 dB, less than the 40 dB"));
        r.auto.as_mut().unwrap().aims.clear();
        r.nodes.reasons[0].reason = "its integer kernel needs opset 12, the model has 9".into();
        r.auto.as_mut().unwrap().after = Some(33.0);
        let all = advice(&r);
        assert!(all.len() <= 5 && all.iter().any(|s| s.contains("export the model anew")), "{all:?}");
        assert!(all.last().unwrap().contains("time budget was over"), "{all:?}");
    }
}
