//! Counts alerts by their values for some labels, in a bounded number of groups.

use std::{
    borrow::Cow,
    hash::{Hash, Hasher},
    sync::Arc,
};

use hashbrown::{Equivalent, HashMap};

/// The value under which alerts are counted if there is no room for their group.
pub const OTHER: &str = "other";

/// The value of a label for alerts that have no value for it.
pub(super) const NONE: &str = "none";

/// What alerts can be grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupLabel {
    /// `currentState`.
    State,
    /// `status`.
    Status,
    /// `priority`.
    Priority,
    /// `app`.
    Source,
    /// `alertType`.
    AlertType,
    /// `eventType`.
    EventType,
    /// The resource's type.
    ResourceType,
    /// `clientUniqueId`.
    Client,
}

/// The place of a group.
pub(super) type GroupId = u32;

/// The number of alerts in each group.
#[derive(Debug)]
pub(super) struct Groups {
    labels: Arc<[GroupLabel]>,
    max: usize,
    places: HashMap<Group, GroupId>,
    /// The groups by place, the first being [`OVERFLOW`]. Places without alerts are free.
    counts: Vec<Count>,
    free: Vec<GroupId>,
}

/// The alerts of a group.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    known: u64,
    /// Known alerts that are not shown.
    hidden: u64,
}

/// The place for alerts whose group found no room.
pub(super) const OVERFLOW: GroupId = 0;

/// The values of a group, one for each label.
#[derive(Debug, PartialEq, Eq)]
struct Group(Box<[Arc<str>]>);

/// The values of an alert, with which its group is found without copying them.
struct Values<'a>(&'a [Cow<'a, str>]);

// === impl GroupLabel ===

impl GroupLabel {
    /// Every label.
    pub const ALL: [Self; 8] = [
        Self::State,
        Self::Status,
        Self::Priority,
        Self::Source,
        Self::AlertType,
        Self::EventType,
        Self::ResourceType,
        Self::Client,
    ];

    /// The label's name, which is also the word in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::State => "state",
            Self::Status => "status",
            Self::Priority => "priority",
            Self::Source => "source",
            Self::AlertType => "alert_type",
            Self::EventType => "event_type",
            Self::ResourceType => "resource_type",
            Self::Client => "client",
        }
    }
}

// === impl Group ===

impl Hash for Group {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.iter().for_each(|value| value.hash(state));
    }
}

// === impl Values ===

impl Values<'_> {
    fn iter(&self) -> impl Iterator<Item = &str> {
        let values = self.0.iter().map(|value| &**value);
        values.map(|value| if value.is_empty() { NONE } else { value })
    }
}

impl Hash for Values<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.iter().for_each(|value| value.hash(state));
    }
}

impl Equivalent<Group> for Values<'_> {
    fn equivalent(&self, group: &Group) -> bool {
        self.iter().eq(group.0.iter().map(|value| &**value))
    }
}

// === impl Count ===

impl Count {
    fn shown(self) -> u64 {
        self.known - self.hidden
    }
}

// === impl Groups ===

impl Groups {
    pub(super) fn new(labels: Arc<[GroupLabel]>, max: usize) -> Self {
        Self {
            labels,
            max,
            places: HashMap::new(),
            counts: vec![Count::default()],
            free: Vec::new(),
        }
    }

    pub(super) fn labels(&self) -> &Arc<[GroupLabel]> {
        &self.labels
    }

    /// Counts an alert and returns its group.
    pub(super) fn add(&mut self, values: &[Cow<'_, str>]) -> GroupId {
        let values = Values(values);
        let place = match self.places.get(&values) {
            Some(place) => *place,
            None if self.places.len() < self.max => {
                let place = self.free.pop().unwrap_or_else(|| {
                    self.counts.push(Count::default());
                    GroupId::try_from(self.counts.len() - 1).unwrap_or(OVERFLOW)
                });
                let group = Group(values.iter().map(Arc::from).collect());
                self.places.insert(group, place);
                place
            }
            None => OVERFLOW,
        };
        self.counts[place as usize].known += 1;
        place
    }

    /// Removes an alert from the count of its group.
    pub(super) fn remove(&mut self, place: GroupId) {
        let count = &mut self.counts[place as usize];
        count.known -= 1;
        if count.known == 0 && place != OVERFLOW {
            self.places.retain(|_, other| *other != place);
            self.free.push(place);
        }
    }

    /// Moves an alert, which may be hidden, from its group to that of its present values, and
    /// returns that group.
    pub(super) fn change(
        &mut self,
        place: GroupId,
        values: &[Cow<'_, str>],
        is_hidden: bool,
    ) -> GroupId {
        if self.places.get(&Values(values)) == Some(&place) {
            return place;
        }
        if is_hidden {
            self.show(place);
        }
        // The old group goes first, because it may leave its place to the new one.
        self.remove(place);
        let place = self.add(values);
        if is_hidden {
            self.hide(place);
        }
        place
    }

    /// Whether alerts are counted under [`OTHER`] because their groups found no room.
    pub(super) fn has_overflow(&self) -> bool {
        self.counts[OVERFLOW as usize].known > 0
    }

    /// Hides an alert, which is still known, from the counts shown.
    pub(super) fn hide(&mut self, place: GroupId) {
        self.counts[place as usize].hidden += 1;
    }

    /// Takes back [`Groups::hide`].
    pub(super) fn show(&mut self, place: GroupId) {
        self.counts[place as usize].hidden -= 1;
    }

    /// Returns the groups that have alerts to show, in the order of their values.
    pub(super) fn counts(&self) -> Vec<(Vec<Arc<str>>, u64)> {
        let mut groups: Vec<_> = self
            .places
            .iter()
            .map(|(group, place)| (group, self.counts[*place as usize].shown()))
            .filter(|(_, shown)| *shown > 0)
            .map(|(group, shown)| (group.0.to_vec(), shown))
            .collect();
        let overflow = self.counts[OVERFLOW as usize].shown();
        if overflow > 0 {
            let values: Vec<Arc<str>> = self.labels.iter().map(|_| Arc::from(OTHER)).collect();
            // A group whose values are literally "other" must not become a second series of the
            // same name.
            match groups.iter_mut().find(|(known, _)| *known == values) {
                Some((_, count)) => *count += overflow,
                None => groups.push((values, overflow)),
            }
        }
        groups.sort_unstable();
        groups
    }
}
