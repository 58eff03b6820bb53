/* graph.cpp - CUDA graphs: what a capture recorded, run again with the arguments it was recorded with. */
#include "sim.h"

#include <map>

using namespace simt;

namespace {

/* One captured operation; `before` are indices of earlier steps. */
struct step {
    enum node::kind kind;
    std::function<void()> run;
    std::vector<size_t> before;
};

} // namespace

struct CUgraph_st {
    std::vector<step> steps;
};

struct CUgraphExec_st {
    std::shared_ptr<std::vector<step>> steps;
};

namespace {

std::vector<size_t> numbers_of(const std::vector<node_ptr> &nodes,
                               const std::map<node *, size_t> &number)
{
    std::vector<size_t> found;
    for (const node_ptr &n : nodes) found.push_back(number.at(n.get()));
    return found;
}

/* In the order of capture, or, with random schedules, in any other that respects `before`. */
void run_steps(const std::vector<step> &steps)
{
    std::vector<bool> done(steps.size());
    std::vector<size_t> able;
    for (size_t ran = 0; ran < steps.size(); ran++) {
        able.clear();
        for (size_t i = 0; i < steps.size() && (able.empty() || config().schedule == RANDOM); i++) {
            bool can = !done[i];
            for (size_t other : steps[i].before) can = can && done[other];
            if (can) able.push_back(i);
        }
        const size_t next = able[config().schedule == RANDOM ? random_number() % able.size() : 0];
        perform(steps[next].kind, steps[next].run);
        done[next] = true;
    }
}

} // namespace

cudaGraph_t simt::graph_of(const capture &c)
{
    CUgraph_st *graph = new CUgraph_st;
    std::map<node *, size_t> number;
    for (const node_ptr &n : c.nodes) {
        graph->steps.push_back({ n->kind, n->run, numbers_of(n->before, number) });
        number.emplace(n.get(), number.size());
    }
    return graph;
}

extern "C" {

/* In CUDA handles of nodes; here numbers that only tell them apart. */
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
    SIM_CALL();
    if (nodes)
        for (size_t i = 0; i < *count; i++)
            nodes[i] = (cudaGraphNode_t)(i < graph->steps.size() ? i + 1 : 0);
    if (!nodes || *count > graph->steps.size()) *count = graph->steps.size();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    SIM_CALL();
    *out = new CUgraphExec_st{ std::make_shared<std::vector<step>>(graph->steps) };
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    SIM_CALL();
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    SIM_CALL();
    counted.graph_launches++;
    return answer(enqueue(stream, node::GRAPH, [steps = exec->steps] { run_steps(*steps); }));
}

/* The same kinds of operation in the same order; their arguments may differ. */
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph,
                                cudaGraphExecUpdateResultInfo *info)
{
    SIM_CALL();
    *info = {};
    bool same = exec->steps->size() == graph->steps.size();
    for (size_t i = 0; same && i < graph->steps.size(); i++)
        same = (*exec->steps)[i].kind == graph->steps[i].kind &&
               (*exec->steps)[i].before == graph->steps[i].before;
    info->result = same ? cudaGraphExecUpdateSuccess : cudaGraphExecUpdateErrorTopologyChanged;
    if (!same) return answer(cudaErrorGraphExecUpdateFailure);
    exec->steps = std::make_shared<std::vector<step>>(graph->steps);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    SIM_CALL();
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    SIM_CALL();
    delete graph;
    return cudaSuccess;
}

} // extern "C"
