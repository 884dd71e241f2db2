//! Constants that take factors in.

use crate::{
    error::Result,
    ir::{NodeId, Tensor},
};

/// What becomes of the numbers of a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Power {
    /// They are multiplied by the factors: it stands where divided values are read.
    Times,
    /// They are divided by them: it stands where divided values are made.
    Over,
}

/// A constant input of a node whose numbers change with the factors of the channels that they belong to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Take {
    /// The node.
    pub node: NodeId,
    /// The number of its input.
    pub input: usize,
    /// The axes of the constant along which the channels lie, in the order of the channels.
    pub axes: Vec<usize>,
    /// Groups that the channels are in; where there are several, axis 0 runs through the groups, and the other axis through
    /// the channels of each.
    pub groups: usize,
    /// How.
    pub power: Power,
}

impl Take {
    /// The number of channels that a constant of this shape has; `None` where the axes are not its own.
    pub fn channels(&self, dims: &[usize]) -> Option<usize> {
        self.axes.iter().try_fold(self.groups, |n, &a| n.checked_mul(*dims.get(a)?))
    }

    /// The channel of each element of a constant of this shape, by its number in row-major order.
    pub fn channel_of(&self, dims: &[usize]) -> impl Fn(usize) -> usize + use<> {
        let stride = |axis: usize| dims.iter().skip(axis + 1).product::<usize>().max(1);
        let size = |axis: usize| dims.get(axis).copied().unwrap_or(1).max(1);
        let axes: Vec<(usize, usize)> = self.axes.iter().map(|&a| (stride(a), size(a))).collect();
        // Elements of one group lie behind each other, since axis 0 is the outermost.
        let group = (dims.iter().product::<usize>() / self.groups.max(1)).max(1);
        move |i| axes.iter().fold(i / group, |channel, (stride, size)| channel * size + i / stride % size)
    }

    /// The constant with the factors taken in; `None` if that is not finite.
    pub fn scaled(&self, constant: &Tensor, factors: &[f32]) -> Result<Option<Tensor>> {
        let channel = self.channel_of(constant.dims());
        let by: Vec<f64> = factors
            .iter()
            .map(|&f| match self.power {
                Power::Times => f64::from(f),
                Power::Over => 1.0 / f64::from(f),
            })
            .collect();
        let mut numbers = constant.to_f32()?;
        for (i, x) in numbers.iter_mut().enumerate() {
            *x = (f64::from(*x) * by.get(channel(i)).copied().unwrap_or(1.0)) as f32;
        }
        Ok(numbers.iter().all(|x| x.is_finite()).then(|| Tensor::from_f32(constant.dims(), &numbers)))
    }

    /// The largest magnitude in each of `channels` channels.
    pub fn largest(&self, constant: &Tensor, channels: usize) -> Result<Vec<f32>> {
        let channel = self.channel_of(constant.dims());
        let mut largest = vec![0f32; channels];
        for (i, x) in constant.to_f32()?.into_iter().enumerate() {
            if let Some(most) = largest.get_mut(channel(i)) {
                *most = most.max(x.abs());
            }
        }
        Ok(largest)
    }
}
