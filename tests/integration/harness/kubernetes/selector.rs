//! Label selectors, such as `app=web,tier in (front, back),!canary`.

use super::store::Labels;

/// Requirements that labels meet all of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone)]
struct Requirement {
    label: String,
    /// Of which its value must be one; none: whichever.
    values: Option<Vec<String>>,
    /// Whether it must be so, or must not.
    wanted: bool,
}

impl Selector {
    /// None for what is no selector.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut requirements = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            // A comma between parentheses separates values.
            let open = rest.find('(').unwrap_or(rest.len());
            let end = match rest.find(',').filter(|comma| *comma < open) {
                Some(comma) => comma,
                None if open == rest.len() => open,
                None => rest.find(')')? + 1,
            };
            requirements.push(Requirement::parse(rest[..end].trim())?);
            rest = rest[end..].trim_start();
            rest = match rest.strip_prefix(',') {
                Some(more) if !more.trim().is_empty() => more.trim_start(),
                None if rest.is_empty() => rest,
                _ => return None,
            };
        }
        Some(Self(requirements))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn selects(&self, labels: &Labels) -> bool {
        self.0.iter().all(|one| one.is_met_by(labels))
    }
}

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        let new = |label: &str, values, wanted| {
            let label = label.trim().to_owned();
            let valid = !label.is_empty() && !label.contains([' ', '=', '!', '(', ')']);
            valid.then_some(Self {
                label,
                values,
                wanted,
            })
        };
        let one = |value: &str| Some(vec![value.trim().to_owned()]);
        if let Some(open) = text.find('(') {
            let values = text[open + 1..].strip_suffix(')')?;
            let values = values.split(',').map(|value| value.trim().to_owned());
            let (label, operator) = text[..open].trim().split_once(' ')?;
            let wanted = match operator.trim() {
                "in" => true,
                "notin" => false,
                _ => return None,
            };
            return new(label, Some(values.collect()), wanted);
        }
        if let Some((label, value)) = text.split_once("!=") {
            return new(label, one(value), false);
        }
        if let Some((label, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return new(label, one(value), true);
        }
        match text.strip_prefix('!') {
            Some(label) => new(label, None, false),
            None => new(text, None, true),
        }
    }

    fn is_met_by(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.label);
        let met = value.is_some_and(|value| match &self.values {
            Some(values) => values.contains(value),
            None => true,
        });
        met == self.wanted
    }
}

#[test]
fn selectors_select_by_labels() {
    let labels = [("app", "web"), ("tier", "front")];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let labels = Labels::from(labels);
    for (text, selected) in [
        ("", true),
        ("app=web", true),
        ("app == web , tier=front", true),
        ("app=web,tier=back", false),
        ("tier in (front,back)", true),
        ("tier in (front, back),app!=web", false),
        ("app=web,tier notin (back)", true),
        ("canary notin (yes)", true),
        ("app,!canary", true),
        ("canary", false),
        ("!app", false),
    ] {
        let selector = Selector::parse(text).expect(text);
        assert_eq!(selector.selects(&labels), selected, "{text}");
    }
    for text in [
        "app=web,",
        "tier in front",
        "tier in (front",
        "=",
        "a b",
        "tier among (x)",
    ] {
        assert!(Selector::parse(text).is_none(), "{text}");
    }
}
