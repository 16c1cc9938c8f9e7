export async function mutate(name) {
  return { lead: (agent, ...rest) => agent.lead(...rest), options: () => ({}) };
}
