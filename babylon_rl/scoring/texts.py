"""What an agent was told, wrote and did, as texts for scorers that read."""

from typing import TYPE_CHECKING

from babylon_rl.recording.window import action_calls
from babylon_rl.scoring.features import spoken_action
from babylon_rl.scoring.seam import RunText

if TYPE_CHECKING:
    from babylon_rl.recording.window import UsableTrajectory


def run_text(trajectory: "UsableTrajectory") -> RunText:
    """Texts of a run: of each step what the agent was shown, what it answered, and what was done."""
    decisions, actions, answers = [], [], []
    goal = ""
    for step in trajectory.steps:
        done = spoken_action(step.action)
        said, wrote = [f"Action: {done}"], []
        for call in action_calls(step):
            goal = goal or call.system_prompt
            wrote.append(call.response)
            said = [f"Saw: {call.user_prompt}", f"Answered: {call.response}", *said]
        decisions.append("\n".join(said))
        actions.append(f"Action: {done}")
        answers.append("\n".join(wrote))
    return RunText(
        trajectory_id=trajectory.trajectory_id,
        agent_id=trajectory.agent_id,
        goal=goal,
        decisions=decisions,
        actions=actions,
        answers=answers,
    )
