//! The whole front of size, speed and loss of a model, and the best model within budgets.
//!
//! A point of the search is a configuration ([`recipe`]) and what `quantize` makes of it, measured as a whole ([`lab`]); so the
//! best one can be made again from its YAML. Calibration and the noises of single roundings are shared by all points.
//! [`search`] tries the ends first (all float, and the fastest plan of each form), then ladders of allowed noise between them
//! ([`rung`], with the prices of mode `auto`), then what lies between their rungs and near the budgets, and changes by chance ([`steps`]).
//! What is known is in the [`state`]; [`front`] chooses.

mod aims;
mod front;
mod lab;
mod recipe;
mod rung;
mod search;
mod speed;
mod state;
mod steps;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

pub(super) use self::recipe::exact;
pub use self::{
    aims::{Aims, parse_speedup},
    speed::SpeedBy,
};
use self::{
    lab::{Lab, Setup, digest_of},
    search::{End, Limits, Search},
    speed::Speeds,
    state::{Identity, State, identity_of_data, identity_of_model},
};
use super::{Clock, Job, auto::judged_on, before, finish, options, planner, prepare, quantize, thin, trained};
use crate::{
    calibrate::Dataset,
    config::{Config, duration},
    diagnostics::{Diagnostic, count},
    error::{Error, Result},
    files::Files,
    onnx_file,
    passes::Context,
    report::tune::{Budgets, Figures, Point, Tuned},
    scheme::Settings,
    validate::Reference,
};

/// Points that are tried where nothing else is said.
pub const POINTS: usize = 60;

/// A search.
pub struct Tuning<'a> {
    /// Model, data, settings and the file to write.
    pub job: &'a Job<'a>,
    /// What the model shall keep to.
    pub aims: Aims,
    /// Where speeds come from.
    pub speed: SpeedBy,
    /// The most points.
    pub points: usize,
    /// No new point is begun after this time.
    pub time: Option<Duration>,
    /// For the choices by chance.
    pub seed: u64,
    /// A file in which the search keeps what it knows.
    pub state: Option<PathBuf>,
}

/// Searches, and writes the best model within the budgets. Where there is none, nothing is written, and [`Tuned::best`] is `None`.
pub fn tune(tuning: &Tuning<'_>) -> Result<Tuned> {
    let (began, job) = (Instant::now(), tuning.job);
    check(tuning)?;
    let mut files = Files::default();
    files.extend(&job.files);
    tuning.state.iter().for_each(|path| files.write("--state", path));
    let checked = Job { files, ..job.clone() };
    let files = before::check(&checked)?;
    let Some(path) = &job.data else { return Err(before::no_data(&job.settings.config)) };
    let mut clock = Clock::resumed(job.progress, Vec::new());
    clock.step("read");
    let original = onnx_file::read_with(&job.model, job.read)?;
    before::check_weights(&files)?;
    if trained::may(&job.settings.config)
        && trained::is_trained(&original, &job.settings.target).map_err(|e| e.file(&job.model))?
    {
        return Err(trained::nothing_to_tune().file(&job.model));
    }
    clock.step("prepare");
    let mut cx = Context { options: options(job.settings), ..Context::default() };
    let prepared = prepare(&original, &mut cx).map_err(|e| e.file(&job.model))?;
    let data = job.open_data(path, &original)?;
    let evaluation = job.evaluation.as_deref().map(|d| job.open_data(d, &original)).transpose()?;
    let mut noticed = before::look_at(&original, false);
    let (samples, split) = planner::samples(job, &data, &mut noticed)?;
    clock.step("judge");
    let (judged_data, mut judged) = match &evaluation {
        Some(data) => (data, judged_on(data, false, &(0..data.len()).collect::<Vec<_>>(), &[])),
        None => (&data, judged_on(&data, false, &split.validation, &samples)),
    };
    let judged_all = match &evaluation {
        Some(data) => (0..data.len()).collect(),
        None => split.validation.clone(),
    };
    let reference = Reference::new(job.runtime, &prepared, judged_data, &judged, &|_, _| ())?;
    noticed.extend(before::answered(&reference, &mut judged)?);
    let unseen = judged.iter().filter(|s| evaluation.is_some() || !samples.contains(s)).count();
    let speeds = Speeds::open(tuning.speed, &data)?;
    let original_bytes = onnx_file::size_on_disk(&job.model, &original);
    let budgets = tuning.aims.budgets(original_bytes, job.settings.config.allowed_loss())?;
    let mut state = open_state(tuning, &original, &speeds)?;
    let known = state.points.len();
    let judged_samples = judged.len();
    let setup =
        Setup { job, original: &original, prepared: &prepared, data: &data, samples, reference, judged, speeds, clock };
    let mut lab = Lab::new(setup)?;
    let limits = Limits { points: tuning.points, until: tuning.time.map(|time| began + time) };
    let path = tuning.state.as_deref();
    let end = Search::new(&mut lab, &mut state, path, budgets, limits, tuning.seed).run()?;
    let mut figures: Vec<Figures> = state.points.iter().map(|p| p.figures.clone()).collect();
    let front = front::front(&figures, |f| f.speed);
    let mut proof = judged_all.clone();
    if evaluation.is_none() {
        thin(&mut proof, job.settings.config.proof.samples);
    }
    let best = held(&mut lab, &state, &mut figures, &budgets, (judged_data, proof), &mut noticed)?;
    let labelled = figures.iter().any(|f| f.right.is_some());
    let point = |(i, known): (usize, &state::Known)| Point {
        made: known.recipe.words(),
        figures: figures[i].clone(),
        front: front[i],
        fits: aims::fits(&budgets, &figures[i]),
    };
    let mut tuned = Tuned {
        speed_by: lab.speeds.words(&job.settings.target.name),
        loss_by: loss_by(labelled, lab.has_vectors()).to_owned(),
        samples: judged_samples,
        unseen,
        original_bytes,
        budgets,
        points: state.points.iter().enumerate().map(point).collect(),
        known,
        best,
        closest: if best.is_none() { front::closest(&figures, &budgets) } else { None },
        ended: ended(end, tuning),
        seconds: 0.0,
        diagnostics: noticed,
        yaml: None,
        report: None,
    };
    if let Some(best) = best {
        let config = lab.config(&state.points[best].recipe);
        let plan = state.points[best].plan.clone();
        drop(lab);
        tuned.yaml = Some(config.to_yaml()?);
        let settings = Settings::new(config)?;
        let again = Job { settings: &settings, ..checked.clone() };
        let made = quantize(&again)?;
        if digest_of(&made.plan)? != plan {
            return Err(Error::bug("the best point's configuration makes another plan than the one that was measured")
                .help("please report it; nothing is written"));
        }
        let report = finish(&again, made)?;
        // What the report says of data and model need not be said twice.
        tuned.diagnostics.retain(|d| !report.diagnostics.contains(d));
        tuned.report = Some(report);
    }
    tuned.diagnostics.extend(few_labels(&tuned, judged_data.has_labels()));
    tuned.seconds = began.elapsed().as_secs_f64();
    Ok(tuned)
}

/// Points that may fail the proof before the first is taken.
const PROVED: usize = 12;

/// The best point that keeps to the loss on the samples of the proof, too; the best of all, with a warning, where none does.
fn held(
    lab: &mut Lab<'_>,
    state: &State,
    figures: &mut [Figures],
    budgets: &Budgets,
    (data, mut samples): (&Dataset, Vec<usize>),
    noticed: &mut Vec<Diagnostic>,
) -> Result<Option<usize>> {
    let measured = lab.speeds.is_measured();
    let best = front::best(figures, budgets, measured);
    if budgets.loss.is_none() || best.is_none() || samples.is_empty() {
        return Ok(best);
    }
    let proof = Reference::new(lab.job.runtime, lab.prepared, data, &samples, &|_, _| ())?;
    before::answered(&proof, &mut samples)?;
    let (mut tried, mut found): (Vec<(usize, f64)>, _) = (Vec::new(), None);
    while tried.len() < PROVED {
        let Some(point) = front::best(figures, budgets, measured) else { break };
        let loss = lab.proved(&state.points[point].recipe, &proof, &samples)?;
        let judged = std::mem::replace(&mut figures[point].loss, loss);
        let holds = aims::Aim::Loss.holds(budgets, &figures[point]);
        if !holds {
            let [loss, judged] = [loss, judged].map(|l| format!("{:.2} %", 100.0 * l));
            let text = format!(
                "point {point} was judged to lose {judged} and loses {loss} on the {} of the proof: it is not taken",
                count(samples.len(), "sample")
            );
            noticed.push(Diagnostic::note("proof_lost_more", text));
        }
        tried.push((point, judged));
        if holds {
            found = Some(point);
            break;
        }
    }
    // What points were chosen by stands in the table.
    tried.iter().for_each(|&(point, judged)| figures[point].loss = judged);
    if found.is_some() {
        return Ok(found);
    }
    // By the samples that they are judged on the first is the best, and the others are no better on those of the proof.
    noticed.retain(|d| d.code != "proof_lost_more");
    let text = format!(
        "none of {} within the budget of loss keeps to it on the {} of the proof, too: the best of them is written all the same",
        count(tried.len(), "point"),
        count(samples.len(), "sample")
    );
    noticed
        .push(Diagnostic::warning("proof_lost_more", text).help("give more samples, or compare what is written below"));
    Ok(tried.first().map(|&(point, _)| point))
}

/// Says so where the data have labels and loss is not counted in right answers.
fn few_labels(tuned: &Tuned, labels: bool) -> Option<Diagnostic> {
    (labels && tuned.points.iter().all(|p| p.figures.right.is_none())).then(|| {
        let text = format!("the data have labels, but fewer than {} answers to count", super::auto::ENOUGH);
        Diagnostic::note("few_labels", text).help("give --evaluation with more labelled samples to count right answers")
    })
}

fn loss_by(labelled: bool, vectors: bool) -> &'static str {
    match labelled {
        true => "share of the original's right answers that are lost, by the data's labels",
        false if vectors => {
            "by the noise of the answers: 30 dB at each output are 1 %, 50 dB 0.1 %, at one that holds vectors 13 dB less"
        }
        false => "by the noise of the answers: 30 dB at each output are 1 %, 50 dB 0.1 %",
    }
}

fn ended(end: End, tuning: &Tuning<'_>) -> String {
    match end {
        End::Points => format!("this search came to as many points as were asked for (--points {})", tuning.points),
        End::Time => {
            let time = tuning.time.map(duration::words).unwrap_or_default();
            format!("the time was over (--time-budget {time})")
        }
        End::NothingNew => "nothing new was found".to_owned(),
    }
}

/// Refuses settings that would do nothing.
fn check(tuning: &Tuning<'_>) -> Result<()> {
    let config = &tuning.job.settings.config;
    let idle = [
        ("never_slower", config.never_slower, "tune measures the speed of every point itself"),
        ("everywhere", config.everywhere, "tune tries by itself what that makes"),
        ("time_budget", config.time_budget.is_some(), "that is for mode auto; tune has --time-budget"),
        ("fit_ranges", config.fit_ranges, "tune does not search with it"),
        ("split_concats", config.split_concats, "tune does not search with it"),
        ("absorb_biases", config.absorb_biases, "tune does not search with it"),
    ];
    if let Some((key, _, why)) = idle.iter().find(|(_, set, _)| *set) {
        return Err(Error::config(format!("no effect of {key}: {why}")).help(format!("leave {key} out")));
    }
    if tuning.points == 0 {
        return Err(Error::config("with 0 points there is nothing to choose from").help("leave --points out"));
    }
    Ok(())
}

fn open_state(tuning: &Tuning<'_>, original: &crate::ir::Model, speeds: &Speeds) -> Result<State> {
    let (job, path) = (tuning.job, tuning.state.as_deref());
    let identity = |model: String, calibration: String, evaluation: Option<String>| -> Result<Identity> {
        // Budgets may change: what was measured stays true.
        let settings = Config { max_loss: None, ..job.settings.config.clone() };
        Ok(Identity {
            qonvert: env!("CARGO_PKG_VERSION").to_owned(),
            model,
            calibration,
            evaluation,
            seed: tuning.seed,
            speed: speeds.name(),
            settings: settings.to_yaml()?,
        })
    };
    if path.is_none() {
        return Ok(State::new(identity(String::new(), String::new(), None)?));
    }
    let data = job.data.as_deref().map(identity_of_data).transpose()?.unwrap_or_default();
    let evaluation = job.evaluation.as_deref().map(identity_of_data).transpose()?;
    State::open(path, identity(identity_of_model(&job.model, original)?, data, evaluation)?)
}
