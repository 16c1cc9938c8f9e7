//! Figures and their bars.

use serde::Serialize;

use super::table::Table;

/// The distribution of a figure over the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The median; of an even number of rounds, the mean of the two values in the middle.
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Spread {
    /// Summarizes the values. Without values, all fields are NaN, which exceeds every bar.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
        let last = values.len().saturating_sub(1);
        Self {
            median: f64::midpoint(at(last / 2), at(last.div_ceil(2))),
            min: at(0),
            max: at(last),
        }
    }
}

/// The reference that a figure is compared with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Beside {
    /// The name of the reference.
    pub(crate) name: &'static str,
    /// In the figure's unit.
    pub(crate) value: Spread,
    /// The figure divided by the reference, per round: a disturbance of a round affects both.
    pub(crate) ratio: Spread,
}

/// A figure and its bar.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// The name of the figure.
    pub(crate) name: &'static str,
    /// The unit of `measured` and of the reference.
    pub(crate) unit: &'static str,
    /// The measured values.
    pub(crate) measured: Spread,
    /// The reference, if the bar is a ratio.
    pub(crate) beside: Option<Beside>,
    /// The upper limit of the median of the ratio or, without a reference, of the figure itself.
    pub(crate) bar: f64,
    /// Whether the median is within the bar.
    pub(crate) met: bool,
}

impl Figure {
    /// Creates a figure that must not exceed `bar` times its reference. `pairs` has one pair for each round.
    pub(crate) fn ratio(
        name: &'static str,
        beside: &'static str,
        bar: f64,
        rounds: &[(f64, f64)],
    ) -> Self {
        let ratio = Spread::of(rounds.iter().map(|(measured, beside)| measured / beside));
        Self {
            name,
            unit: "µs",
            measured: Spread::of(rounds.iter().map(|(measured, _)| *measured)),
            beside: Some(Beside {
                name: beside,
                value: Spread::of(rounds.iter().map(|(_, beside)| *beside)),
                ratio,
            }),
            bar,
            met: ratio.median <= bar,
        }
    }

    /// Creates a figure that must not exceed `bar`.
    pub(crate) fn plain(name: &'static str, unit: &'static str, bar: f64, measured: f64) -> Self {
        Self {
            name,
            unit,
            measured: Spread::of([measured]),
            beside: None,
            bar,
            met: measured <= bar,
        }
    }

    fn row(&self) -> Vec<String> {
        let unit = self.unit;
        let (beside, ratio, bar) = match &self.beside {
            Some(beside) => {
                let Spread { median, min, max } = beside.ratio;
                (
                    format!("{}: {:.1} {unit}", beside.name, beside.value.median),
                    format!("{median:.3} ({min:.3}–{max:.3})"),
                    format!("≤ {:.2} ×", self.bar),
                )
            }
            None => (
                "–".to_owned(),
                "–".to_owned(),
                format!("≤ {} {unit}", self.bar),
            ),
        };
        let met = if self.met { "yes" } else { "NO" };
        vec![
            self.name.to_owned(),
            format!("{:.1} {unit}", self.measured.median),
            beside,
            ratio,
            bar,
            met.to_owned(),
        ]
    }
}

/// Renders the figures with their bars.
pub(crate) fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new(&[
        "figure",
        "measured",
        "beside",
        "ratio: median (min–max)",
        "bar",
        "met?",
    ]);
    for figure in figures {
        table.push(figure.row());
    }
    table
}

/// The names of the figures that exceed their bars; `None` if all are within.
pub(crate) fn missed(figures: &[Figure]) -> Option<String> {
    let missed = figures.iter().filter(|figure| !figure.met);
    let names: Vec<_> = missed.map(|figure| figure.name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let odd = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        let even = Spread::of([4.0, 1.0, 2.0, 3.0]);
        assert_eq!((even.median, even.min, even.max), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of([7.0]).median, 7.0);
        assert!(Spread::of([]).median.is_nan());
    }

    #[test]
    fn ratios_are_made_round_by_round() {
        // A disturbance affected the whole second round. The ratio of medians would be 3.
        let rounds = [(10.0, 10.0), (90.0, 30.0), (30.0, 10.0), (11.0, 10.0)];
        let figure = Figure::ratio("a", "b", 2.0, &rounds);
        let beside = figure.beside.as_ref().expect("beside another");
        assert_eq!(
            (beside.ratio.median, beside.ratio.min, beside.ratio.max),
            (2.05, 1.0, 3.0)
        );
        assert_eq!(figure.measured.median, 20.5);
        assert_eq!(beside.value.median, 10.0);
        assert!(!figure.met);
    }

    #[test]
    fn a_bar_is_met_up_to_the_bar_itself() {
        let ratio = |measured| Figure::ratio("a", "b", 1.25, &[(measured, 4.0)]);
        assert!(ratio(4.9).met);
        assert!(ratio(5.0).met);
        assert!(!ratio(5.1).met);
        // A value of zero means that nothing was measured.
        assert!(!Figure::ratio("a", "b", 1.25, &[(0.0, 0.0)]).met);
        let plain = |measured| Figure::plain("c", "KiB", 32.0, measured);
        assert!(plain(32.0).met);
        assert!(!plain(32.1).met);

        assert_eq!(missed(&[ratio(5.0), plain(1.0)]), None);
        let names = missed(&[ratio(5.1), plain(1.0), plain(40.0)]);
        assert_eq!(names.as_deref(), Some("a, c"));
    }

    #[test]
    fn the_table_tells_figure_bar_and_whether_it_is_met() {
        let figures = [
            Figure::ratio("health", "floor", 1.25, &[(26.0, 20.0), (24.0, 20.0)]),
            Figure::plain("memory", "KiB", 32.0, 28.04),
        ];
        let table = table(&figures).to_string();
        let cells: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(
            cells[2][1..7],
            [
                "health",
                "25.0 µs",
                "floor: 20.0 µs",
                "1.250 (1.200–1.300)",
                "≤ 1.25 ×",
                "yes"
            ]
        );
        assert_eq!(
            cells[3][1..7],
            ["memory", "28.0 KiB", "–", "–", "≤ 32 KiB", "yes"]
        );
    }
}
