//! Converts a question to Cedar's input: the request, and the entities that policies may use.

use std::{collections::HashSet, sync::LazyLock};

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request,
    RestrictedExpression as Value, Schema,
};
use election_core::types::Candidate;

use super::{HELD, PolicyAction, Question, Resource};
use crate::auth::Identity;

pub(super) struct Facts {
    pub(super) request: Request,
    pub(super) entities: Entities,
}

impl Facts {
    /// Converts a question. Validates it against the schema if one is given. Validation costs more than the evaluation,
    /// and it always succeeds if the action applies to the resource.
    ///
    /// # Errors
    /// Cedar rejects the request or an entity.
    pub(super) fn new(question: &Question<'_>, schema: Option<&Schema>) -> Result<Self, String> {
        let Question {
            identity,
            action,
            resource,
            candidate,
            current_leader,
            held,
        } = *question;
        let context = [
            ("candidate", "candidateName", candidate),
            ("currentLeader", "currentLeaderName", current_leader),
        ];
        let context = context.into_iter().filter_map(|(entity, name, candidate)| {
            let candidate = candidate?.as_str();
            let entity = (
                entity.to_owned(),
                Value::new_entity_uid(uid(&CANDIDATE, candidate)),
            );
            Some([entity, text(name, candidate)])
        });
        let elects = matches!(
            action,
            PolicyAction::Campaign | PolicyAction::Handover | PolicyAction::ForceHandover
        );
        let counts = HELD.into_iter().zip([held.by_holder, held.of_kind]);
        let counts = counts.filter(|_| elects).map(|(name, count)| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            (name.to_owned(), Value::new_long(count))
        });
        let context = Context::from_pairs(context.flatten().chain(counts)).map_err(text_of)?;
        let request = Request::new(
            uid(&IDENTITY, identity.name()),
            action_uid(action),
            resource_uid(&resource),
            context,
            schema,
        );

        let mut names = vec![identity.name()];
        names.extend(candidate.map(Candidate::as_str));
        names.extend(current_leader.map(Candidate::as_str));
        names.sort_unstable();
        names.dedup();
        let mut entities: Vec<_> = names.into_iter().map(candidate_entity).collect();
        entities.push(identity_entity(identity)?);
        resource_entities(&resource, &mut entities)?;
        Ok(Self {
            request: request.map_err(text_of)?,
            entities: Entities::from_entities(entities, schema).map_err(text_of)?,
        })
    }
}

fn text_of(error: impl std::error::Error) -> String {
    error.to_string()
}

type Type = LazyLock<EntityTypeName>;

static ACTION: Type = Type::new(|| type_name("Action"));
static AGENT: Type = Type::new(|| type_name("Agent"));
static CANDIDATE: Type = Type::new(|| type_name("Candidate"));
static DEPLOYMENT: Type = Type::new(|| type_name("Deployment"));
static ELECTION: Type = Type::new(|| type_name("Election"));
static GROUP: Type = Type::new(|| type_name("Group"));
static IDENTITY: Type = Type::new(|| type_name("Identity"));
static KIND: Type = Type::new(|| type_name("Kind"));
static NAMESPACE: Type = Type::new(|| type_name("Namespace"));
static POD: Type = Type::new(|| type_name("Pod"));

fn type_name(name: &str) -> EntityTypeName {
    let name = format!("ElectionAgent::{name}");
    #[expect(
        clippy::expect_used,
        reason = "they are the constants above, which tests use, too"
    )]
    name.parse().expect("a type's name")
}

/// Builds an entity id without parsing: names may contain Cedar's syntax.
fn uid(type_name: &EntityTypeName, name: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(type_name.clone(), EntityId::new(name))
}

fn text(attribute: &str, value: &str) -> (String, Value) {
    (attribute.to_owned(), Value::new_string(value.to_owned()))
}

fn entity<const N: usize>(
    uid: EntityUid,
    attributes: [(String, Value); N],
    parents: HashSet<EntityUid>,
) -> Result<Entity, String> {
    Entity::new(uid, attributes.into(), parents).map_err(text_of)
}

fn action_uid(action: PolicyAction) -> EntityUid {
    uid(&ACTION, action.name())
}

fn identity_entity(identity: &Identity) -> Result<Entity, String> {
    let name = identity.name();
    let candidate = Value::new_entity_uid(uid(&CANDIDATE, name));
    entity(
        uid(&IDENTITY, name),
        [
            text("name", name),
            text("mode", identity.mode().name()),
            ("candidate".to_owned(), candidate),
        ],
        identity
            .groups()
            .iter()
            .map(|group| uid(&GROUP, group))
            .collect(),
    )
}

fn candidate_entity(name: &str) -> Entity {
    let above = above(name).map(|name| uid(&CANDIDATE, name)).collect();
    Entity::new_no_attrs(uid(&CANDIDATE, name), above)
}

/// Returns the prefixes of a candidate's name that end before a slash.
///
/// These are all candidates that it can be below, regardless of slashes in their names. Empty prefixes are omitted,
/// because no name is empty.
pub(super) fn above(candidate: &str) -> impl Iterator<Item = &str> {
    let slashes = candidate.match_indices('/');
    slashes
        .map(|(slash, _)| &candidate[..slash])
        .filter(|name| !name.is_empty())
}

fn resource_uid(resource: &Resource<'_>) -> EntityUid {
    match resource {
        Resource::Election(election) => uid(&ELECTION, election.path()),
        Resource::Kind(kind) => uid(&KIND, kind.as_str()),
        // Names in Kubernetes contain no slash. A pair that does yields an id with several slashes, which matches no
        // object.
        Resource::Deployment { namespace, name } => {
            uid(&DEPLOYMENT, &format!("{namespace}/{name}"))
        }
        Resource::Pod { namespace, name } => uid(&POD, &format!("{namespace}/{name}")),
        Resource::Agent => uid(&AGENT, "agent"),
    }
}

/// Adds the resource's own entity and its parents.
fn resource_entities(resource: &Resource<'_>, entities: &mut Vec<Entity>) -> Result<(), String> {
    let itself = resource_uid(resource);
    let whole =
        |type_name, name| entity(uid(type_name, name), [text("name", name)], HashSet::new());
    match *resource {
        Resource::Election(election) => {
            let kind = election.kind();
            entities.push(whole(&KIND, kind)?);
            entities.push(entity(
                itself,
                [text("kind", kind), text("name", election.name())],
                HashSet::from([uid(&KIND, kind)]),
            )?);
        }
        Resource::Kind(kind) => entities.push(whole(&KIND, kind.as_str())?),
        Resource::Deployment { namespace, name } | Resource::Pod { namespace, name } => {
            entities.push(whole(&NAMESPACE, namespace)?);
            entities.push(entity(
                itself,
                [text("namespace", namespace), text("name", name)],
                HashSet::from([uid(&NAMESPACE, namespace)]),
            )?);
        }
        Resource::Agent => entities.push(Entity::with_uid(itself)),
    }
    Ok(())
}
